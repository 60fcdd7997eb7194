//! The three versions of llama2.c's files: the same numbers in each give the same logits to the bit.

use std::path::Path;
use std::sync::Arc;

use flashlm_model::{Exec, Isa, Peer};

/// dim, hidden, blocks, heads, kv, vocab, seq.
const SIZES: [i32; 7] = [8, 12, 2, 2, 1, 10, 16];
/// Elements that share a factor in version 2.
const GROUP: usize = 4;
/// A power of two, so that a byte times it is exact.
const FACTOR: f32 = 0.0625;

/// One tensor of a block, or of the model: as many numbers as it has, each one byte times the factor.
fn codes(name: &str, block: usize, n: usize) -> Vec<i8> {
    let seed: usize = name.bytes().map(usize::from).sum::<usize>() + 1009 * block;
    (0..n).map(|i| ((seed + i) * 37 % 251) as u8 as i8).collect()
}

fn floats(codes: &[i8]) -> Vec<u8> {
    codes.iter().flat_map(|&code| (f32::from(code) * FACTOR).to_le_bytes()).collect()
}

/// As `export.py` of llama2.c writes it.
fn file(version: i32, tied: bool) -> Vec<u8> {
    file_of(SIZES, version, tied)
}

fn file_of(mut sizes: [i32; 7], version: i32, tied: bool) -> Vec<u8> {
    let [dim, hidden, blocks, heads, kv, vocab, seq] = sizes.map(|n| n as usize);
    let keys = dim / heads * kv;
    let of = |name: &str, block: usize, n: usize| codes(name, block, n);
    let all = |name: &str, n: usize| (0..blocks).map(|block| of(name, block, n)).collect::<Vec<_>>();
    let matrix = |codes: &Vec<i8>| match version {
        2 => {
            let bytes = codes.iter().map(|&code| code as u8);
            bytes.chain(codes.chunks(GROUP).flat_map(|_| FACTOR.to_le_bytes())).collect()
        }
        _ => floats(codes),
    };
    let matrices = |name: &str, n: usize| all(name, n).iter().flat_map(matrix).collect::<Vec<u8>>();
    let norms = |name: &str| all(name, dim).iter().flat_map(|codes| floats(codes)).collect::<Vec<u8>>();
    let (table, norm) = (matrix(&of("embedding", 0, vocab * dim)), floats(&of("norm", 0, dim)));
    let attention = [("q", dim * dim), ("k", keys * dim), ("v", keys * dim), ("o", dim * dim)];
    let attention: Vec<u8> = attention.into_iter().flat_map(|(name, n)| matrices(name, n)).collect();
    let glu: Vec<u8> = ["w1", "w2", "w3"].into_iter().flat_map(|name| matrices(name, hidden * dim)).collect();
    let head = if tied { Vec::new() } else { matrix(&of("head", 0, vocab * dim)) };
    if version == 0 {
        sizes[5] *= if tied { 1 } else { -1 };
        let header = sizes.into_iter().flat_map(i32::to_le_bytes).collect();
        let turns = vec![0; 4 * seq * (dim / heads)];
        return [header, table, norms("one"), attention, norms("two"), glu, norm, turns, head].concat();
    }
    let mut header = [&b"24ka"[..], &version.to_le_bytes()].concat();
    header.extend(sizes.into_iter().flat_map(i32::to_le_bytes));
    header.push(u8::from(tied));
    header.extend((GROUP as i32).to_le_bytes());
    header.resize(256, 0);
    [header, norms("one"), norms("two"), norm, table, attention, glu, head].concat()
}

fn logits(path: &Path) -> Vec<u32> {
    let cx = Exec::new(Isa::detect().unwrap(), 1);
    let peer = Arc::new(Peer::weights(&cx, path).unwrap());
    let mut out = Vec::new();
    peer.sequence().feed(&cx, &[1, 7, 3, 9, 0, 4, 4, 2], |z| out.extend(z.iter().map(|z| z.to_bits())));
    out
}

#[test]
fn all_versions_give_the_same_logits() {
    let place = tempfile::tempdir().unwrap();
    let mut tables = Vec::new();
    for tied in [true, false] {
        let versions = [0, 1, 2].map(|version| {
            let path = place.path().join(format!("v{version}.bin"));
            std::fs::write(&path, file(version, tied)).unwrap();
            logits(&path)
        });
        assert!(versions[0].len() == 80 && versions[0] == versions[1], "version 1, tied: {tied}");
        assert!(versions[0] == versions[2], "version 2, tied: {tied}");
        tables.push(versions[0].clone());
    }
    assert_ne!(tables[0], tables[1]);
    for version in [0, 1, 2] {
        let (path, whole) = (place.path().join("cut.bin"), file(version, true));
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let cx = Exec::new(Isa::detect().unwrap(), 1);
        let error = Peer::weights(&cx, &path).map(|_| panic!("version {version} was read")).unwrap_err().to_string();
        assert!(error.contains(&format!("expected {}", whole.len())), "{error}");
    }
}

#[test]
fn files_that_differ_anywhere_and_other_tokenizers_have_other_digests() {
    let place = tempfile::tempdir().unwrap();
    let cx = Exec::new(Isa::detect().unwrap(), 1);
    let write = |name: &str, bytes: &[u8]| {
        let path = place.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    // A context of 8 in the head, and nothing else.
    let mut sizes = SIZES;
    sizes[5] = 260;
    let plain = file_of(sizes, 1, true);
    let mut shorter = plain.clone();
    shorter[32..36].copy_from_slice(&8i32.to_le_bytes());
    let mut last = plain.clone();
    *last.last_mut().unwrap() ^= 1;
    let peers = [("a.bin", &plain), ("b.bin", &shorter), ("c.bin", &last), ("d.bin", &plain)]
        .map(|(name, bytes)| Peer::weights(&cx, &write(name, bytes)).unwrap());
    assert_eq!((peers[0].context(), peers[1].context()), (16, 8));
    let [plain, shorter, last, same] = peers.each_ref().map(|peer| peer.digest());
    assert!(plain != shorter && plain != last && shorter != last, "{plain} {shorter} {last}");
    assert_eq!(plain, same);
    // The longest piece, then a score, a length and the bytes of each.
    let tokenizer = |word: &str| {
        let pieces = (0..260).map(|i| if i == 259 { word.to_string() } else { format!("{i}") });
        let each = pieces.flat_map(|piece| {
            [&0f32.to_le_bytes()[..], &(piece.len() as i32).to_le_bytes(), piece.as_bytes()].concat()
        });
        write("tokenizer.bin", &[&3i32.to_le_bytes()[..], &each.collect::<Vec<u8>>()].concat());
        Peer::open(&cx, &place.path().join("a.bin")).unwrap().digest().to_string()
    };
    let (cat, dog, again) = (tokenizer("cat"), tokenizer("dog"), tokenizer("cat"));
    assert!(cat != dog && cat == again && cat != plain && cat.len() == 16, "{cat} {dog} {plain}");
}
