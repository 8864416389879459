//! A TCP proxy in front of a server, which can be taken away and brought back at the same address.

use std::{
    io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// The proxy; it ends with all its connections when dropped.
pub struct Proxy {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    is_stopped: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// Listens at an address of the loopback interface, or at a free one for port 0.
    pub fn start(port: u16, target: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::<Shared>::default();
        let accepting = Arc::clone(&shared);
        let accepting = thread::spawn(move || {
            while !accepting.is_stopped.load(Ordering::Acquire) {
                match listener.accept() {
                    Ok((client, _)) => accepting.connect(client, target),
                    Err(_none_waits) => thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Self { address, shared, accepting: Some(accepting) }
    }
}

impl Shared {
    fn connect(&self, client: TcpStream, target: SocketAddr) {
        client.set_nonblocking(false).unwrap();
        let Ok(server) = TcpStream::connect(target) else { return };
        for (from, to) in [(&client, &server), (&server, &client)] {
            let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            self.streams.lock().unwrap().push(from.try_clone().unwrap());
            thread::spawn(move || {
                let _ended = io::copy(&mut from, &mut to);
                let _closed = to.shutdown(Shutdown::Both);
            });
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.is_stopped.store(true, Ordering::Release);
        if let Some(accepting) = self.accepting.take() {
            accepting.join().unwrap();
        }
        for stream in self.shared.streams.lock().unwrap().drain(..) {
            let _closed = stream.shutdown(Shutdown::Both);
        }
    }
}
