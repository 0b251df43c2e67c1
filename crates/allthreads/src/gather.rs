//! The owner's loop that ends when every thread is proved to be held.
//!
//! The proof is a count, not a list. Held threads and the owner are a part of the thread group; when
//! the group's size, read once from the kernel, equals their number, they are all of it. Only a member
//! can create a member, so nobody else can appear either. A held thread leaves the group in one way
//! alone, killed by a seccomp filter of its own: those are counted after the size was read, so that
//! none that was gone by then is taken for a member. A listing only tells whom to signal: what it misses costs another round, never a thread.
//!
//! Members that cannot take part (a dead leader, kernel workers, threads that the caller vouches
//! for) are *bystanders*. They are looked at before and after the size is read; if the same ones
//! were there both times they were there in between, and the proof holds with them subtracted.

use crate::hold::Hold;

/// What the loop needs from the system.
pub(crate) trait Os {
    /// Why the system could not answer.
    type Error;
    /// Bystanders that are there at this moment.
    fn bystanders(&mut self) -> Result<u32, Self::Error>;
    /// The size of the thread group, the owner included.
    fn population(&mut self) -> Result<u32, Self::Error>;
    /// Threads that have joined and have ended since: those known, or all of them.
    fn dead(&mut self, hold: &Hold, all: bool) -> u32;
    /// Signals every listed thread that was not yet signalled.
    fn summon(&mut self, hold: &Hold) -> Result<(), Self::Error>;
    /// Waits for arrivals, about until there are `target`; an error when that is hopeless for now.
    fn pause(&mut self, hold: &Hold, target: u32) -> Result<(), Self::Error>;
}

/// Gathers until everybody is held, and closes the gate. Returns how many are held; on an error
/// the gate is still open, and the caller must roll back.
pub(crate) fn gather<O: Os>(hold: &Hold, os: &mut O) -> Result<u32, O::Error> {
    loop {
        let before = os.bystanders()?;
        // The arrivals first: whoever is counted here is still held when the size is read.
        let arrived = hold.arrivals();
        let population = os.population()?;
        let members = arrived + 1 + before;
        // After the size: one more may be dead for each that is missing from it.
        let known = os.dead(hold, false);
        let dead = os.dead(hold, population + known <= members);
        if population + dead == members && os.bystanders()? == before && hold.close(arrived) {
            return Ok(arrived);
        }
        os.summon(hold)?;
        os.pause(hold, (population + dead).saturating_sub(1 + before))?;
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// A process in which one held thread has died, and one that is not held lives.
    struct Grave {
        rounds: u32,
    }

    impl Os for Grave {
        type Error = u32;

        fn bystanders(&mut self) -> Result<u32, u32> {
            Ok(0)
        }

        fn population(&mut self) -> Result<u32, u32> {
            // The caller, one of the two that joined, and the other one, which comes in the second round.
            Ok(3)
        }

        fn dead(&mut self, _: &Hold, all: bool) -> u32 {
            u32::from(all || self.rounds > 0)
        }

        fn summon(&mut self, hold: &Hold) -> Result<(), u32> {
            self.rounds += 1;
            if self.rounds < 2 { hold.join(|| false).map(drop).ok_or(0) } else { Err(self.rounds) }
        }

        fn pause(&mut self, _: &Hold, target: u32) -> Result<(), u32> {
            assert_eq!(target, 3, "who is missing is waited for");
            Ok(())
        }
    }

    /// As many are in the process as have joined, but they are not the same.
    #[test]
    fn a_held_thread_that_has_died_does_not_stand_for_one_that_lives() {
        use crate::signal::Kernel;
        let hold = Hold::new();
        assert!(hold.begin(&Kernel, || None, || ()));
        hold.join(|| false).unwrap();
        hold.join(|| false).unwrap();
        let mut grave = Grave { rounds: 0 };
        assert_eq!(gather(&hold, &mut grave), Ok(3));
        assert_eq!(grave.rounds, 1);
    }
}
