//! The product wired as it is shipped, against simulated providers, and the real binary.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::string_slice,
    clippy::needless_pass_by_value,
    clippy::as_conversions,
    clippy::allow_attributes,
    clippy::print_stdout,
    unreachable_pub,
    dead_code,
    reason = "test code, of which some waits for other processes"
)]

// Before the others, which use its macro.
#[macro_use]
mod support;

mod abandoned_streams;
mod access;
mod attempts;
#[cfg(feature = "bedrock-credentials")]
mod aws_chain;
mod bedrock;
mod binary;
mod breakers;
mod connections;
mod contents;
mod credentials;
mod dumps;
mod egress;
mod endings;
mod faults;
mod injected_tools;
mod keys;
mod limits;
mod listener;
mod logs;
mod malformed_answers;
mod offline;
mod paths;
mod phases;
mod quirks;
mod reading;
mod refusals;
mod reload;
mod retries;
mod routes;
mod sessions;
mod sim;
mod transparency;
mod untrusted_text;
mod uploads;
mod vendors;
