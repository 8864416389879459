//! Any response in the dialect is observed alike however it is split.
#![no_main]

use keybridge_wire::Dialect;
use libfuzzer_sys::fuzz_target;

mod observe;

fuzz_target!(|input: (u8, &[u8])| {
    observe::observe(Dialect::Responses, input.0, input.1);
});
