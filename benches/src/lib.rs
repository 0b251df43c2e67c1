//! The benches of the workspace: `cargo bench -p benches`. They are a package of their own so that
//! the tests of the crates, which are built for every architecture, do not build criterion.
