//! What a file is by its first bytes.

use flashlm_model::io::LFS_POINTER;

pub(super) const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
pub(super) const GZIP: &[u8] = &[0x1f, 0x8b];

/// Longest file that can be a git LFS pointer.
pub(super) const POINTER: usize = 1024;

/// First bytes of formats that are often mistaken for text.
const MAGICS: [(&[u8], &str); 23] = [
    (b"\x7fELF", "it is an ELF program"),
    (b"\x89PNG", "it is a PNG image"),
    (b"\xff\xd8\xff", "it is a JPEG image"),
    (b"%PDF", "it is a PDF document; extract the text first"),
    (GZIP, "it is gzip-compressed; rename it to end in .gz"),
    (b"BZh", "it is bzip2-compressed; decompress it first (`bunzip2`)"),
    (b"\xfd7zXZ\0", "it is xz-compressed; decompress it first (`unxz`)"),
    (b"\x04\x22\x4d\x18", "it is lz4-compressed; decompress it first (`unlz4`)"),
    (b"ARROW1", "it is an Arrow file; write it as Parquet"),
    (b"PK\x03\x04", "it is a zip archive (or a .pt file); unpack it first"),
    (ZSTD, "it is zstd-compressed; rename it to end in .zst"),
    (b"PAR1", "it is a Parquet table; rename it to end in .parquet (decompress it first if it is compressed)"),
    (b"GGUF", "it is a GGUF model"),
    (b"{\\rtf", "it is an RTF document; save it as plain text first"),
    (b"\xd0\xcf\x11\xe0", "it is an office document; save it as plain text or CSV first"),
    (b"SQLite format 3\0", "it is an SQLite database; export a table as CSV first"),
    (b"7z\xbc\xaf\x27\x1c", "it is a 7z archive; unpack it first (`7z x`)"),
    (b"Rar!\x1a\x07", "it is a RAR archive; unpack it first"),
    (b"\xff\xfe\0\0", "it is UTF-32; convert it to UTF-8 first (`iconv -f UTF-32 -t UTF-8`)"),
    (b"\0\0\xfe\xff", "it is UTF-32; convert it to UTF-8 first (`iconv -f UTF-32 -t UTF-8`)"),
    (b"\xff\xfe", "it is UTF-16; convert it to UTF-8 first (`iconv -f UTF-16 -t UTF-8`)"),
    (b"\xfe\xff", "it is UTF-16; convert it to UTF-8 first (`iconv -f UTF-16 -t UTF-8`)"),
    (
        b"FLMTOKS\0",
        "it is a token cache that `flashlm data prepare` wrote; name the text that it was made of (training prepares it by itself), and \
      --tokenizer FILE for the same vocabulary",
    ),
];

/// What a file is, and what to do with it, if its first bytes are of a format that is often mistaken for text.
pub(crate) fn foreign(start: &[u8]) -> Option<&'static str> {
    let tar = start.get(257..262) == Some(b"ustar");
    let magic = MAGICS.iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, found)| *found);
    magic.or(tar.then_some("it is a tar archive; unpack it first (`tar -xf`)"))
}

/// The same of the few lines that git leaves in the place of a large file. `start` is all of a small file.
pub(super) fn pointer(start: &[u8]) -> Option<&'static str> {
    if start.len() <= POINTER && start.starts_with(b"/annex/objects/") {
        return Some("it is a git-annex pointer to a file not yet fetched; run `git annex get`");
    }
    let pointer = start.len() <= POINTER && start.starts_with(LFS_POINTER);
    pointer.then_some("it is a git LFS pointer to a file not yet fetched; run `git lfs pull`")
}

/// The same of a web page, which servers send instead of a file that they do not give.
pub(super) fn markup(start: &[u8]) -> Option<&'static str> {
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    let begins = |word: &str| start.get(..word.len()).is_some_and(|s| s.eq_ignore_ascii_case(word.as_bytes()));
    let page = ["<!doctype", "<html", "<head", "<?xml", "<!--"].into_iter().any(begins);
    page.then_some("it starts like HTML, so it may be the error page of a server; fetch it again")
}
