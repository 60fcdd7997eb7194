//! What the machine is: processor name, cores, memory.

/// The machine in words and numbers.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Processor name, or the architecture where the system does not tell.
    pub name: String,
    /// Threads that this process may use.
    pub cores: usize,
    /// Main memory in bytes; 0 where the system does not tell.
    pub memory: u64,
}

impl Machine {
    /// Reads the machine's own description.
    pub fn detect() -> Machine {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, key: &str| {
            let line = text.lines().find(|line| line.starts_with(key))?;
            Some(line.split_once(':')?.1.trim().to_string())
        };
        let name = field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| std::env::consts::ARCH.to_string());
        let kib = field(&read("/proc/meminfo"), "MemTotal")
            .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok())
            .unwrap_or(0);
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        Machine { name, cores, memory: kib * 1024 }
    }
}

/// The most memory this process has held so far, in bytes; 0 where the system does not tell.
pub fn peak_rss() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// What the threads of this process have had of the processors.
#[derive(Clone, Copy, Debug)]
pub struct CpuTime {
    /// Seconds in which they ran.
    pub ran: f64,
    /// Seconds in which they could have run, but others did.
    pub waited: f64,
}

impl CpuTime {
    /// Of the threads that there are now; `None` where the system does not tell.
    pub fn now() -> Option<CpuTime> {
        let mut sum = CpuTime { ran: 0.0, waited: 0.0 };
        for task in std::fs::read_dir("/proc/self/task").ok()? {
            // A thread may have ended meanwhile.
            let Ok(text) = std::fs::read_to_string(task.ok()?.path().join("schedstat")) else { continue };
            let mut nanos = text.split_whitespace().map(|n| n.parse().unwrap_or(0.0));
            (sum.ran, sum.waited) = (sum.ran + 1e-9 * nanos.next()?, sum.waited + 1e-9 * nanos.next()?);
        }
        Some(sum)
    }

    /// The fraction of the time since `before` in which threads ran, of that in which they could have; 1 if unknown.
    pub fn share_since(before: Option<CpuTime>) -> f64 {
        let (Some(before), Some(now)) = (before, CpuTime::now()) else { return 1.0 };
        let (ran, waited) = (now.ran - before.ran, now.waited - before.waited);
        if ran > 0.0 { (ran / (ran + waited.max(0.0))).min(1.0) } else { 1.0 }
    }
}

/// A share of the processors below which a measurement says more about other programs than about this one.
pub const BUSY: f64 = 0.9;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_a_fraction() {
        let before = CpuTime::now();
        let started = std::time::Instant::now();
        while started.elapsed().as_millis() < 30 {}
        let share = CpuTime::share_since(before);
        assert!(share > 0.0 && share <= 1.0, "{share}");
        assert_eq!(CpuTime::share_since(None), 1.0);
        if let (Some(before), Some(now)) = (before, CpuTime::now()) {
            assert!(now.ran >= before.ran, "{before:?} {now:?}");
        }
    }
}
