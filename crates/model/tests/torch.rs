//! Files of `torch.save` that were made by hand: what is whole is read, what is hostile is refused with one sentence.

use flashlm_model::io::safetensors::TensorFile;
use flashlm_model::io::torch::TorchFile;
use flashlm_model::original::Original;
use flashlm_model::{Exec, Isa, Precision, Prepared, Shape, Token};
use std::collections::BTreeMap;

/// A zip archive as `torch.save` writes it.
fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut all, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in files {
        let (at, n) = (all.len() as u32, data.len() as u32);
        let sizes = [[0; 4], n.to_le_bytes(), n.to_le_bytes()].concat();
        let lengths = [name.len() as u16, 0].map(u16::to_le_bytes).concat();
        all.extend([b"PK\x03\x04", &[0; 10][..], &sizes, &lengths, name.as_bytes(), data].concat());
        directory.extend(
            [b"PK\x01\x02", &[0; 12][..], &sizes, &lengths, &[0; 10], &at.to_le_bytes(), name.as_bytes()].concat(),
        );
    }
    let (at, n) = (all.len() as u32, directory.len() as u32);
    let count = (files.len() as u16).to_le_bytes();
    [&all[..], &directory, b"PK\x05\x06", &[0; 4], &count, &count, &n.to_le_bytes(), &at.to_le_bytes(), &[0; 2]]
        .concat()
}

fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

fn ints(values: &[i64]) -> Vec<u8> {
    let int = |value: &i64| [&b"\x8a\x08"[..], &value.to_le_bytes()].concat();
    [b"(", &values.iter().flat_map(int).collect::<Vec<_>>()[..], b"t"].concat()
}

fn storage(kind: &str, file: &str, elements: i64) -> Vec<u8> {
    let elements = ints(&[elements]);
    let number = &elements[1..elements.len() - 1];
    [b"(", &text("storage")[..], b"ctorch\n", kind.as_bytes(), b"\n", &text(file), &text("cpu"), number, b"tQ"].concat()
}

/// A dict with the tensor `w`.
fn pickle(storage: &[u8], offset: i64, size: &[i64], stride: &[i64]) -> Vec<u8> {
    let offset = ints(&[offset]);
    let offset = &offset[1..offset.len() - 1];
    let call =
        [b"ctorch._utils\n_rebuild_tensor_v2\n(", storage, offset, &ints(size), &ints(stride), b"\x89}tR"].concat();
    [b"\x80\x02}(", &text("w")[..], &call, b"u."].concat()
}

fn file(pickle: &[u8]) -> Vec<u8> {
    let data: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
    zip(&[("m/data.pkl", pickle), ("m/byteorder", b"little"), ("m/data/0", &data)])
}

fn read(bytes: Vec<u8>) -> Result<Vec<f32>, String> {
    let file = TorchFile::from_bytes(bytes, "x.pt").map_err(|e| e.to_string())?;
    let tensors = file.root().to_tensors(|_| true, &BTreeMap::new()).map_err(|e| e.to_string())?;
    tensors.f32("w").map_err(|e| e.to_string())
}

#[test]
fn views_are_copied_in_their_order() {
    let six = storage("FloatStorage", "0", 6);
    assert_eq!(read(file(&pickle(&six, 0, &[2, 3], &[3, 1]))).unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    // Transposed, and a part of it.
    assert_eq!(read(file(&pickle(&six, 0, &[3, 2], &[1, 3]))).unwrap(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    assert_eq!(read(file(&pickle(&six, 2, &[2], &[3]))).unwrap(), [2.0, 5.0]);
    assert_eq!(read(file(&pickle(&six, 6, &[0], &[1]))).unwrap(), [0.0; 0]);
}

#[test]
fn hostile_files_are_refused_with_one_sentence() {
    let six = storage("FloatStorage", "0", 6);
    let plain = pickle(&six, 0, &[2, 3], &[3, 1]);
    let good = file(&plain);
    let op = |body: &[u8]| file(&[b"\x80\x02", body, b"."].concat());
    let names = |name: &str| zip(&[(name, &plain)]);
    let edit = |from: &[u8], by: &[u8]| {
        let mut bytes = good.clone();
        let at = bytes.windows(from.len()).rposition(|window| window == from).unwrap();
        bytes[at..at + by.len()].copy_from_slice(by);
        bytes
    };
    let end = good.len();
    let tensor = |offset, size: &[i64], stride: &[i64]| file(&pickle(&six, offset, size, stride));
    let deep = [&vec![b'('; 300_000][..], b"t"].concat();
    let bomb: Vec<u8> = (0..200_000).flat_map(|_| [b']']).collect();
    let shared: Vec<u8> = {
        // One storage as many tensors.
        let plain = pickle(&storage("FloatStorage", "0", 4096), 0, &[4096], &[1]);
        let one = &plain[4 + text("w").len()..plain.len() - 2];
        let all: Vec<u8> = (0..40).flat_map(|i| [text(&format!("w{i}")), one.to_vec()].concat()).collect();
        let all = [b"\x80\x02}(", &all[..], b"u."].concat();
        zip(&[("m/data.pkl", &all), ("m/data/0", &[0; 4 * 4096])])
    };
    let directory_far = {
        let mut bytes = good.clone();
        bytes[end - 6..end - 2].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
        bytes
    };
    let wide = {
        let mut bytes = good.clone();
        bytes[end - 6..end - 2].copy_from_slice(&u32::MAX.to_le_bytes());
        bytes
    };
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", Vec::new(), "before 1.6"),
        ("old form", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.".to_vec(), "before 1.6"),
        ("cut directory", good[..end - 30].to_vec(), "no directory"),
        ("cut in two", good[..end / 2].to_vec(), "no directory"),
        ("directory outside", directory_far, "outside of the file"),
        ("zip64 without its record", wide, "no directory"),
        ("compressed", edit(b"PK\x01\x02\0\0\0\0\0\0\0\0", b"PK\x01\x02\0\0\0\0\0\0\x08\0"), "compressed"),
        ("encrypted", edit(b"PK\x01\x02\0\0\0\0\0\0\0\0", b"PK\x01\x02\0\0\0\0\x01\0\0\0"), "encrypted"),
        ("path upwards", names("m/../data.pkl"), "no plain path"),
        ("absolute path", names("/m/data.pkl"), "no plain path"),
        ("path of Windows", names("m\\data.pkl"), "no plain path"),
        ("no folder", names("data.pkl"), "in no folder"),
        ("two folders", zip(&[("m/data.pkl", &plain), ("n/data/0", b"")]), "more than one folder"),
        ("a file twice", zip(&[("m/data.pkl", &plain), ("m/data.pkl", &plain)]), "twice"),
        ("no pickle", zip(&[("m/data/0", b"")]), "without data.pkl"),
        ("big endian", zip(&[("m/data.pkl", &plain), ("m/byteorder", b"big")]), "big-endian"),
        ("os.system", op(b"cos\nsystem\nX\x02\0\0\0ls\x85R"), "\"os.system\""),
        ("eval", op(b"c__builtin__\neval\n)R"), "\"__builtin__.eval\""),
        ("getattr of torch", op(b"ctorch\nload\n)R"), "\"torch.load\""),
        ("reduce of a dict", op(b"})R"), "no function"),
        ("wrong opcode", op(b"\xff"), "instruction 0xff"),
        ("opcode INST", op(b"(ios\nsystem\n"), "instruction 0x69"),
        ("protocol 9", file(b"\x80\x09."), "protocol 9"),
        ("cut pickle", file(&plain[..plain.len() - 40]), "cut off"),
        ("empty stack", op(b"0"), "instruction 0x30"),
        ("pops too much", op(b"a"), "empty stack"),
        ("nested marks", op(&deep), "more than"),
        ("many lists", op(&bomb), "more than"),
        ("memo far away", op(b"Nr\xff\xff\xff\x7f"), "remembers value"),
        ("memo with gaps", op(b"Nr\0\0\x01\0"), "leaves numbers"),
        ("recalls nothing", op(b"h\x07"), "has not remembered"),
        ("list of itself", op(b"]q\0h\0a"), "no tensor"),
        ("dict as a list", op(b"}Na"), "something else than a list"),
        ("wide integer", op(b"\x8a\x09\x01\x02\x03\x04\x05\x06\x07\x08\x09"), "more than 64 bits"),
        ("text too long", op(b"X\xff\xff\xff\xffa"), "cut off"),
        ("stride past the end", tensor(0, &[2, 3], &[4, 1]), "past its storage"),
        ("offset past the end", tensor(1, &[2, 3], &[3, 1]), "past its storage"),
        ("sizes that wrap", tensor(0, &[1 << 32, 1 << 32], &[0, 0]), "past its storage"),
        ("stride that wraps", tensor(0, &[2, 3], &[i64::MAX, i64::MAX]), "past its storage"),
        ("repeats an element", tensor(0, &[1000], &[0]), "past its storage"),
        ("negative stride", tensor(0, &[2], &[-1]), "of -1"),
        (
            "storage larger than its file",
            file(&pickle(&storage("FloatStorage", "0", 7), 0, &[7], &[1])),
            "of 7 elements",
        ),
        ("storage that is not there", file(&pickle(&storage("FloatStorage", "9", 6), 0, &[6], &[1])), "is not there"),
        (
            "storage of another folder",
            file(&pickle(&storage("FloatStorage", "../data.pkl", 6), 0, &[6], &[1])),
            "is not there",
        ),
        ("many views of one storage", shared, "four times the bytes"),
    ];
    assert!(cases.len() >= 30);
    for (name, bytes, says) in cases {
        let error = match read(bytes) {
            Ok(found) => panic!("{name}: was read as {found:?}"),
            Err(error) => error,
        };
        // A file without tensors is whole, but none that a model can be read from.
        let expected = if says == "no tensor" { "expected a tensor `w`" } else { says };
        assert!(error.starts_with("x.pt: ") && error.contains(expected) && !error.contains('\n'), "{name}: {error}");
    }
}

/// A bare state dict of these tensors.
fn state_dict(tensors: &[(String, Vec<usize>, Vec<f32>)]) -> Vec<u8> {
    let numbers = |values: &[usize]| values.iter().map(|&n| n as i64).collect::<Vec<_>>();
    let mut pickle = b"\x80\x02}(".to_vec();
    let mut data = Vec::new();
    for (i, (name, shape, values)) in tensors.iter().enumerate() {
        let strides: Vec<usize> = (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect();
        let one = self::pickle(
            &storage("FloatStorage", &i.to_string(), values.len() as i64),
            0,
            &numbers(shape),
            &numbers(&strides),
        );
        pickle.extend(text(name));
        pickle.extend(&one[4 + text("w").len()..one.len() - 2]);
        data.push((format!("m/data/{i}"), values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()));
    }
    pickle.extend(b"u.");
    let files = data.iter().map(|(name, bytes)| (name.as_str(), &bytes[..]));
    zip(&[("m/data.pkl", &pickle[..])].into_iter().chain(files).collect::<Vec<_>>())
}

#[test]
fn blockwise_and_gated_delta_files_give_the_logits_of_pytorch() {
    let above = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|folder| folder.join("shared"));
    let named = std::env::var_os("FLASHLM_SHARED").map(std::path::PathBuf::from);
    let Some(shared) = named.into_iter().chain(above).find(|folder| folder.join("fixtures").is_dir()) else {
        assert!(std::env::var_os("CI").is_none(), "../shared is missing in CI");
        eprintln!("skipped: ../shared is not there");
        return;
    };
    let place = tempfile::tempdir().unwrap();
    let cx = Exec::new(Isa::detect().unwrap(), 1);
    for (name, mixer) in
        [("v4_tiny", "conv"), ("blockwise_tiny", "conv"), ("gdn_tiny", "delta"), ("gdn_small_1block", "delta")]
    {
        let vectors = TensorFile::open(&shared.join(format!("fixtures/{name}.safetensors"))).unwrap();
        let names = vectors.names();
        let params = names.iter().filter_map(|full| Some((full, full.strip_prefix("param.")?)));
        let tensors: Vec<(String, Vec<usize>, Vec<f32>)> = params
            .map(|(full, name)| (name.to_string(), vectors.shape(full).unwrap().to_vec(), vectors.f32(full).unwrap()))
            .collect();
        let path = place.path().join(format!("{name}.pt"));
        std::fs::write(&path, state_dict(&tensors)).unwrap();
        let original = Original::open(&path).unwrap();
        assert_eq!((original.config.mixer_of(0), original.step), (mixer, None));
        let &[b, t] = vectors.shape("x").unwrap() else { panic!("{name}: x") };
        let x: Vec<Token> = vectors.ints("x").unwrap().iter().map(|&id| id as Token).collect();
        let want = vectors.f32("logits").unwrap();
        let mut lm = Precision::F32.build(&original.config, b * t, false).unwrap();
        let mut got = vec![0.0; want.len()];
        Prepared::new(&cx, &mut *lm, &original.params).logits(&mut got, &x, None, Shape { batch: b, seq_len: t });
        let square = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
        let apart = square(&mut got.iter().zip(&want).map(|(a, b)| f64::from(a - b)));
        let ratio = (apart / square(&mut want.iter().map(|&x| f64::from(x)))).sqrt();
        assert!(ratio < 1e-5, "{name}: {ratio:e}");
    }
}
