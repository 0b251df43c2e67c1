//! Commands of the workspace; see the README.
fn main() {}
