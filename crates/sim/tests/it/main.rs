//! Tests of the simulated providers and of the simulated MCP server.

mod http;
mod journal;
mod mcp_server;
mod scenarios;
mod shapes;
mod turns;
