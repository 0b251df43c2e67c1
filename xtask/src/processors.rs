//! The processors that this program may run on.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// A processor, by the kernel's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Processor(usize);

/// The processors that the calling thread may run on, the lowest number first.
pub(crate) fn allowed() -> Result<Vec<Processor>, String> {
    let set = sched_getaffinity(None).map_err(|error| format!("sched_getaffinity: {error}"))?;
    Ok((0..CpuSet::MAX_CPU).filter(|&number| set.is_set(number)).map(Processor).collect())
}

impl Processor {
    /// Keeps the calling thread to this processor, and all threads and programs that it starts from now
    /// on.
    pub(crate) fn pin(self) -> Result<(), String> {
        let mut set = CpuSet::new();
        set.set(self.0);
        let pinned = sched_setaffinity(None, &set);
        pinned.map_err(|error| format!("sched_setaffinity to processor {}: {error}", self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::said;

    #[test]
    fn pinned_thread_and_its_programs_have_one_processor() {
        for processor in allowed().unwrap() {
            let pinned = std::thread::spawn(move || {
                processor.pin().unwrap();
                let programs = said(&["grep", "Cpus_allowed_list", "/proc/self/status"]);
                (allowed().unwrap(), programs.unwrap())
            });
            let (of_thread, of_program) = pinned.join().unwrap();
            assert_eq!(of_thread, [processor]);
            assert_eq!(of_program, format!("Cpus_allowed_list:\t{}\n", processor.0));
        }
    }

    #[test]
    fn processor_that_is_not_there_is_refused() {
        let error = Processor(CpuSet::MAX_CPU - 1).pin().unwrap_err();
        assert!(error.contains(&format!("processor {}", CpuSet::MAX_CPU - 1)), "{error}");
    }
}
