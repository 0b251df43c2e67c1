#!/bin/sh
# loom: a thread that loads a word before it writes it hides the write from the threads that load it, too.
#
# One would expect that a model is run for each order of a load and a write by two threads: that is what a model
# checker is for. loom keeps one last access of each word. Where the writer has just loaded the word itself (as each
# loop around a compare-exchange has, and each counter with one writer) that load takes the place of the other thread's,
# and it comes from the same thread as the write: no race is seen, and one order is explored. So a model passes
# whatever is taken out of the code: a reader of two words that does not look at their version again reads halves of
# two writes, and the model does not tell. A writer that keeps its count elsewhere, and does not load the word, is
# explored as one would expect. Fences, orderings, and the number of preemptions make no difference.
# (`rt/atomic.rs`, `last_access`; tokio-rs/loom#166 and #392, both open.)
#
# Needs cargo and a network. Ends with 0 when the behaviour is as below, 1 when it is another one, 2 when it could not
# look.
#
# Seen with loom 0.7.2, Rust 1.95, x86-64. What another thread's load may find, 0 and 1 each time, and what it was
# found to find:
#
# store                       found {0, 1}
# fetch_add                   found {0, 1}
# load, store                 found {0}
# load, fetch_add             found {0}
# load, compare_exchange      found {0}
# halves of two writes, the writer loads its version    not found
# halves of two writes, the writer keeps its version    found
set -eu

give_up() {
    echo "cannot look: $*" >&2
    exit 2
}

command -v cargo > /dev/null || give_up "there is no cargo"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 2' INT TERM

mkdir "$work/src"
cat > "$work/Cargo.toml" << 'END'
[package]
name = "look"
version = "0.0.0"
edition = "2024"

[dependencies]
loom = "=0.7.2"
END

cat > "$work/src/main.rs" << 'END'
use std::collections::BTreeSet;
use std::sync::{Arc as StdArc, Mutex};

use loom::sync::Arc;
use loom::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use loom::sync::atomic::{AtomicU32, fence};
use loom::thread;

/// What a load finds beside a writer, over all runs of the model.
fn beside(write: fn(&AtomicU32)) -> BTreeSet<u32> {
    let found = StdArc::new(Mutex::new(BTreeSet::new()));
    let its = found.clone();
    loom::model(move || {
        let word = Arc::new(AtomicU32::new(0));
        let written = word.clone();
        let writer = thread::spawn(move || write(&written));
        its.lock().unwrap().insert(word.load(Relaxed));
        writer.join().unwrap();
    });
    let found = found.lock().unwrap();
    found.clone()
}

/// Two words that belong together, behind a version that is odd while they are written.
struct Pair {
    version: AtomicU32,
    words: [AtomicU32; 2],
}

/// Whether a reader that does not look at the version again finds halves of two writes.
fn halves(loads: bool) -> bool {
    let found = StdArc::new(Mutex::new(false));
    let its = found.clone();
    loom::model(move || {
        let words = [AtomicU32::new(0), AtomicU32::new(0)];
        let pair = Arc::new(Pair { version: AtomicU32::new(0), words });
        let written = pair.clone();
        let writer = thread::spawn(move || {
            let mut kept = 0;
            for value in [1, 2] {
                if loads {
                    kept = written.version.load(Relaxed);
                }
                written.version.store(kept + 1, Relaxed);
                fence(Release);
                written.words.iter().for_each(|word| word.store(value, Relaxed));
                written.version.store(kept + 2, Release);
                kept += 2;
            }
        });
        if pair.version.load(Acquire) == 2 {
            let [one, other] = pair.words.each_ref().map(|word| word.load(Relaxed));
            *its.lock().unwrap() |= one != other;
        }
        writer.join().unwrap();
    });
    *found.lock().unwrap()
}

fn main() {
    let writers: [(&str, fn(&AtomicU32)); 5] = [
        ("store", |word| word.store(1, Relaxed)),
        ("fetch_add", |word| _ = word.fetch_add(1, Relaxed)),
        ("load, store", |word| {
            let old = word.load(Relaxed);
            word.store(old + 1, Relaxed);
        }),
        ("load, fetch_add", |word| {
            word.load(Relaxed);
            word.fetch_add(1, Relaxed);
        }),
        ("load, compare_exchange", |word| {
            let old = word.load(Relaxed);
            _ = word.compare_exchange(old, 1, Relaxed, Relaxed);
        }),
    ];
    for (name, write) in writers {
        println!("{name:<28}found {:?}", beside(write));
    }
    for (loads, how) in [(true, "loads"), (false, "keeps")] {
        let found = if halves(loads) { "found" } else { "not found" };
        println!("halves of two writes, the writer {how} its version    {found}");
    }
}
END

CARGO_TARGET_DIR="$work/target" cargo run --quiet --release --manifest-path "$work/Cargo.toml" \
    > "$work/seen" || give_up "the program does not build or run"
cat "$work/seen"

cat > "$work/expected" << 'END'
store                       found {0, 1}
fetch_add                   found {0, 1}
load, store                 found {0}
load, fetch_add             found {0}
load, compare_exchange      found {0}
halves of two writes, the writer loads its version    not found
halves of two writes, the writer keeps its version    found
END
if ! cmp -s "$work/seen" "$work/expected"; then
    echo "it is another behaviour now; expected:" >&2
    cat "$work/expected" >&2
    exit 1
fi
