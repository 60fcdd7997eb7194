//! A file as a byte slice, read only: mapped into memory on 64-bit unix, read into memory elsewhere.
//!
//! The mapping is private, so it is only as constant as the file. Files opened here are ones that this project
//! replaces by renaming (never writes in place): a replaced file leaves the old mapping whole. Cutting a mapped
//! file short from outside ends the process with SIGBUS, as with every memory map. This is the one safe function of the crate
//! that trusts in something outside of it.
//!
//! File contents are little-endian, and [`as_u16`] views them in place: big-endian hosts do not compile.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;

#[cfg(target_endian = "big")]
compile_error!("token files are mapped in place and are little-endian: big-endian hosts are not supported");

/// A whole file, read only. Dereferences to its bytes, which start at an address divisible by 8.
#[derive(Debug)]
pub struct Map(sys::Bytes);

impl Map {
    /// Maps (or, where there is no `mmap`, reads) the file at `path`. An empty file gives an empty slice.
    pub fn open(path: &Path) -> io::Result<Map> {
        // Asked before opening: opening a named pipe would wait for ever.
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let file = File::open(path)?;
        let len = usize::try_from(file.metadata()?.len())
            .map_err(|_| io::Error::new(io::ErrorKind::OutOfMemory, "the file is larger than the address space"))?;
        sys::Bytes::new(file, len).map(Map)
    }

    /// Says that these bytes are not needed for now: a mapping lets go of their memory, and reads them again if it has to.
    /// Without it, a pass over a large file counts as memory of this process.
    pub fn release(&self, range: Range<usize>) {
        self.0.release(range.start.min(self.len())..range.end.min(self.len()));
    }
}

impl Deref for Map {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.0.bytes()
    }
}

/// The bytes as little-endian `u16`s in place; `None` if the address is odd or the length is.
pub fn as_u16(bytes: &[u8]) -> Option<&[u16]> {
    // SAFETY: every pair of bytes is a valid u16; `align_to` itself keeps to aligned, whole elements.
    let (before, middle, after) = unsafe { bytes.align_to::<u16>() };
    (before.is_empty() && after.is_empty()).then_some(middle)
}

// 64-bit only: there `off_t` is 64 bits wide in every C library, which the declaration below relies on.
#[cfg(all(unix, target_pointer_width = "64", not(miri)))]
mod sys {
    use std::ffi::{c_int, c_void};
    use std::fs::File;
    use std::io;
    use std::ops::Range;
    use std::os::fd::AsRawFd;
    use std::ptr::NonNull;

    const PROT_READ: c_int = 1;
    const MAP_PRIVATE: c_int = 2;
    const MADV_DONTNEED: c_int = 4;
    /// Any page size divides it.
    const PAGES: usize = 64 << 10;

    // SAFETY: the POSIX signatures, with the 64-bit `size_t` and `off_t` of these targets.
    unsafe extern "C" {
        fn mmap(addr: *mut c_void, len: usize, prot: c_int, flags: c_int, fd: c_int, offset: i64) -> *mut c_void;
        fn munmap(addr: *mut c_void, len: usize) -> c_int;
        fn madvise(addr: *mut c_void, len: usize, advice: c_int) -> c_int;
    }

    #[derive(Debug)]
    pub struct Bytes {
        start: NonNull<u8>,
        len: usize,
    }

    // SAFETY: the mapping is read only and belongs to this value alone; any thread may read or unmap it.
    unsafe impl Send for Bytes {}
    // SAFETY: as above, `&Bytes` only ever reads.
    unsafe impl Sync for Bytes {}

    impl Bytes {
        pub fn new(file: File, len: usize) -> io::Result<Bytes> {
            if len == 0 {
                // POSIX refuses mappings of length 0. Alignment 8 as for a page.
                return Ok(Bytes { start: NonNull::<u64>::dangling().cast(), len });
            }
            // SAFETY: a fresh mapping at an address of the system's choice of a descriptor that is open; it
            // aliases nothing, and stays valid after the descriptor is closed.
            let addr = unsafe { mmap(std::ptr::null_mut(), len, PROT_READ, MAP_PRIVATE, file.as_raw_fd(), 0) };
            if addr.addr() == usize::MAX {
                return Err(io::Error::last_os_error());
            }
            match NonNull::new(addr.cast()) {
                Some(start) => Ok(Bytes { start, len }),
                None => Err(io::Error::other("mmap returned the null page")),
            }
        }

        pub fn bytes(&self) -> &[u8] {
            // SAFETY: `start..start + len` is mapped readable until drop (or len is 0 and `start` is aligned),
            // and `len` fits in isize because the mapping exists.
            unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
        }

        /// The whole pages within; it is advice, so what the system says does not matter.
        pub fn release(&self, range: Range<usize>) {
            let (start, end) = (range.start.next_multiple_of(PAGES), range.end / PAGES * PAGES);
            if start < end && end <= self.len {
                // SAFETY: pages of this mapping, which is of a file and read only: to drop them loses nothing, the next
                // read brings the same bytes back.
                unsafe { madvise(self.start.as_ptr().add(start).cast(), end - start, MADV_DONTNEED) };
            }
        }
    }

    impl Drop for Bytes {
        fn drop(&mut self) {
            if self.len > 0 {
                // SAFETY: exactly the range that mmap returned, unmapped once; no borrow outlives `self`.
                unsafe { munmap(self.start.as_ptr().cast(), self.len) };
            }
        }
    }
}

#[cfg(not(all(unix, target_pointer_width = "64", not(miri))))]
mod sys {
    use std::fs::File;
    use std::io::{self, Read};
    use std::ops::Range;

    /// Backed by `u64`s so that the bytes are aligned as those of a mapping are.
    #[derive(Debug)]
    pub struct Bytes {
        words: Vec<u64>,
        len: usize,
    }

    impl Bytes {
        pub fn new(mut file: File, len: usize) -> io::Result<Bytes> {
            let count = len.div_ceil(8);
            let mut words = Vec::new();
            words.try_reserve_exact(count).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
            words.resize(count, 0u64);
            // SAFETY: the first `len` bytes of `words`, exclusively borrowed; every byte pattern is a valid u64.
            let bytes = unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>(), len) };
            file.read_exact(bytes)?;
            Ok(Bytes { words, len })
        }

        pub fn bytes(&self) -> &[u8] {
            // SAFETY: `len` initialised bytes lie within `words`, borrowed as long as `self`.
            unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast::<u8>(), self.len) }
        }

        /// These bytes are the only copy.
        pub fn release(&self, _: Range<usize>) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn file(name: &str, bytes: &[u8]) -> PathBuf {
        let path = std::env::temp_dir().join(format!("flashlm-map-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn gives_the_bytes_of_the_file() {
        for len in [0usize, 1, 2, 7, 4095, 4096, 4097, 100_000] {
            let bytes: Vec<u8> = (0..len).map(|i| (i * 7 + i / 256) as u8).collect();
            let path = file("bytes", &bytes);
            let map = Map::open(&path).unwrap();
            assert_eq!(&map[..], &bytes[..]);
            assert_eq!(map.as_ptr().addr() % 8, 0);
            std::fs::remove_file(&path).unwrap();
            assert_eq!(map.len(), len, "the mapping outlives the name");
        }
    }

    #[test]
    fn what_was_released_is_read_again() {
        let bytes: Vec<u8> = (0..300_001).map(|i| (i * 7 + i / 256) as u8).collect();
        let path = file("released", &bytes);
        let map = Map::open(&path).unwrap();
        for range in [0..bytes.len(), 1..200_000, 65_536..131_072, 299_000..usize::MAX, 7..7] {
            assert_eq!(&map[..], &bytes[..]);
            map.release(range);
        }
        assert_eq!(&map[..], &bytes[..]);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_replaced_file_leaves_the_mapping_whole() {
        let path = file("old", b"old contents");
        let map = Map::open(&path).unwrap();
        std::fs::rename(file("new", b"new"), &path).unwrap();
        assert_eq!(&map[..], b"old contents");
        assert_eq!(&Map::open(&path).unwrap()[..], b"new");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn missing_files_and_folders_are_errors() {
        let missing = std::env::temp_dir().join("flashlm-map-missing");
        assert_eq!(Map::open(&missing).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(Map::open(&std::env::temp_dir()).is_err());
    }

    #[test]
    fn u16_views_are_checked() {
        let words = [0x0201u16, 0x0403, 0x0605];
        let path = file("u16", &[1, 2, 3, 4, 5, 6]);
        let map = Map::open(&path).unwrap();
        assert_eq!(as_u16(&map), Some(&words[..]));
        assert_eq!(as_u16(&map[2..]), Some(&words[1..]));
        assert_eq!(as_u16(&map[1..5]), None, "odd address");
        assert_eq!(as_u16(&map[..5]), None, "odd length");
        assert_eq!(as_u16(&map[..0]), Some(&[][..]));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn can_be_read_from_other_threads() {
        let path = file("threads", &[3; 10_000]);
        let map = Map::open(&path).unwrap();
        let sum = |part: &[u8]| part.iter().map(|&b| b as u64).sum::<u64>();
        let total: u64 = std::thread::scope(|s| {
            let halves = [&map[..5000], &map[5000..]].map(|half| s.spawn(move || sum(half)));
            halves.into_iter().map(|h| h.join().unwrap()).sum()
        });
        assert_eq!(total, 30_000);
        std::fs::remove_file(&path).unwrap();
    }
}
