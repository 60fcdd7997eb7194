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
