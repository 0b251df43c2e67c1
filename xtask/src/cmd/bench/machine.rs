//! Whether other programs ran on the machine meanwhile, or the hypervisor took its processors away.

use std::fs;

/// What the machine had done at some point, in ticks of all processors together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticks {
    all: u64,
    idle: u64,
    stolen: u64,
    /// This program, and the programs that it has run to their end.
    own: u64,
}

/// What happened between two points, as parts of the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Load {
    pub(super) others: f64,
    pub(super) stolen: f64,
}

impl Load {
    /// More than the system's own services take.
    const MOST_OTHERS: f64 = 0.05;
    const MOST_STOLEN: f64 = 0.01;

    pub(super) fn is_disturbed(self) -> bool {
        self.others > Self::MOST_OTHERS || self.stolen > Self::MOST_STOLEN
    }

    /// `others 12 %, stolen 0.3 %`.
    pub(super) fn text(self) -> String {
        let percent = |part: f64| format!("{:.1} %", part * 100.0);
        format!(
            "other programs had {}, the hypervisor {}",
            percent(self.others),
            percent(self.stolen)
        )
    }
}

/// What the kernel says at this point. `None`: there is no `/proc`.
pub(super) fn now() -> Option<Ticks> {
    let machine = fs::read_to_string("/proc/stat").ok()?;
    let own = fs::read_to_string("/proc/self/stat").ok()?;
    ticks(&machine, &own)
}

/// The load average of the last minute.
pub(super) fn load_average() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

/// From `/proc/stat` and `/proc/PID/stat`.
fn ticks(machine: &str, own: &str) -> Option<Ticks> {
    let line = machine.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> =
        line.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    // user nice system idle iowait irq softirq steal; guests are in user.
    let first: [u64; 8] = fields.get(..8)?.try_into().ok()?;
    // After the name, which may have blanks: state is field 3, utime 14, stime 15, cutime 16, cstime 17.
    let (_, after) = own.rsplit_once(") ")?;
    let own =
        after.split(' ').skip(11).take(4).map(|n| n.parse::<u64>().ok()).sum::<Option<u64>>()?;
    let [_, _, _, idle, waiting, _, _, stolen] = first;
    Some(Ticks { all: first.iter().sum(), idle: idle + waiting, stolen, own })
}

/// What happened since `before`.
pub(super) fn between(before: Ticks, after: Ticks) -> Load {
    let all = after.all.saturating_sub(before.all).max(1) as f64;
    let stolen = after.stolen.saturating_sub(before.stolen) as f64;
    let idle = after.idle.saturating_sub(before.idle) as f64;
    let own = after.own.saturating_sub(before.own) as f64;
    Load { others: (all - idle - stolen - own).max(0.0) / all, stolen: stolen / all }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "42 (a ) b) S 1 1 1 0 -1 0 0 0 0 0 100 50 30 20 20 0 1 0 5 0";

    #[test]
    fn others_are_who_is_neither_idle_nor_ours() {
        let before = ticks("cpu  100 0 100 1000 0 0 0 10 0 0\ncpu0 1 1\n", OWN).unwrap();
        assert_eq!(before, Ticks { all: 1210, idle: 1000, stolen: 10, own: 200 });
        let later = OWN.replace(" 100 50 ", " 140 60 ");
        let after = ticks("cpu  150 0 130 1090 10 0 0 30 0 0\n", &later).unwrap();
        // 200 ticks: 100 idle, 20 stolen, 50 ours, 30 of others.
        let load = between(before, after);
        assert_eq!(load, Load { others: 0.15, stolen: 0.1 });
        assert!(load.is_disturbed());
        assert_eq!(load.text(), "other programs had 15.0 %, the hypervisor 10.0 %");
    }

    #[test]
    fn quiet_machine_is_not_disturbed() {
        assert!(!Load { others: 0.04, stolen: 0.001 }.is_disturbed());
        assert!(Load { others: 0.0, stolen: 0.02 }.is_disturbed());
        assert_eq!(ticks("intr 1 2", OWN), None);
        assert!(now().is_some() && load_average().is_some());
    }
}
