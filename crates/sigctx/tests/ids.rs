//! User and group ids of 32 bits, where the calls with the plain names have 16.

use std::fs;
use std::time::Duration;

use sigctx::sys::{id_calls, syscall, syscall_raw};

/// The four ids of a line of `/proc/thread-self/status`.
fn ids(key: &str) -> Vec<u32> {
    let status = fs::read_to_string("/proc/thread-self/status").expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("always there");
    line.split_ascii_whitespace().map(|id| id.parse().expect("a number")).collect()
}

#[test]
fn ids_above_16_bits_arrive_whole() {
    testkit::in_child("ids_above_16_bits_arrive_whole", Duration::from_mins(1), || {
        const GROUPS: [u32; 2] = [70_001, 4_000_000_001];
        const GROUP: usize = 70_002;
        const USER: usize = 4_000_000_003;
        let args = [GROUPS.len(), GROUPS.as_ptr() as usize, 0, 0, 0, 0];
        // SAFETY: the kernel reads that many ids.
        if unsafe { syscall(id_calls::SETGROUPS, args) }.is_err() {
            return testkit::skip("only the superuser can take other ids");
        }
        // SAFETY: touches no memory.
        let set = unsafe { syscall(id_calls::SETRESGID, [GROUP, GROUP, GROUP, 0, 0, 0]) };
        assert_eq!(set, Ok(0));
        // SAFETY: touches no memory.
        let set = unsafe { syscall(id_calls::SETRESUID, [USER, USER, USER, 0, 0, 0]) };
        assert_eq!(set, Ok(0));
        assert_eq!(ids("Uid:"), [USER as u32; 4]);
        assert_eq!(ids("Gid:"), [GROUP as u32; 4]);
        assert_eq!(ids("Groups:"), GROUPS);
        // SAFETY: takes no arguments.
        assert_eq!(unsafe { syscall_raw(id_calls::GETUID, [0; 6]) } as u32, USER as u32);
    });
}
