//! The owner's loop that ends when every thread is proved to be held.
//!
//! The proof is a count, not a list. Held threads and the owner are alive and cannot leave, so
//! they are a part of the thread group; when the group's size, read once from the kernel, equals
//! their number, they are all of it. Only a member can create a member, so nobody else can appear
//! either. A listing only tells whom to signal: what it misses costs another round, never a thread.
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
        if population == arrived + 1 + before && os.bystanders()? == before && hold.close(arrived) {
            return Ok(arrived);
        }
        os.summon(hold)?;
        os.pause(hold, population.saturating_sub(1 + before))?;
    }
}
