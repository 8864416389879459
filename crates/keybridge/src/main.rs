//! keybridge: between AI coding agents and LLM providers.

use std::process::ExitCode;

fn main() -> ExitCode {
    keybridge::main()
}
