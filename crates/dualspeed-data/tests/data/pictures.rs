//! Pictures of every kind against Pillow, pixel for pixel. Made by scripts/fixtures/pictures.py.

use std::path::{Path, PathBuf};

use dualspeed_core::hash::hex;
use dualspeed_data::{
    FitMode, Grey16, ImageError, ImageLoading, ImageProcessor, RgbImage, Transparency,
    check_image_file, decode_image, load_image, printable,
};
use serde_json::Value;
use sha2::{Digest, Sha256};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fixtures/pictures").join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(fixture(name)).unwrap()
}

fn index() -> Value {
    serde_json::from_slice(&bytes("index.json")).unwrap()
}

fn hash(image: &RgbImage) -> String {
    hex(&Sha256::digest(image.as_raw()))
}

#[test]
fn every_kind_has_pillows_pixels_before_and_after_fitting() {
    let index = index();
    let side = index["versions"]["side"].as_u64().unwrap() as usize;
    let pictures = index["pictures"].as_array().unwrap();
    assert!(pictures.len() >= 60);
    let mut different = Vec::new();
    for picture in pictures {
        let name = picture["name"].as_str().unwrap();
        let image = load_image(fixture(name), &ImageLoading::default()).unwrap().pixels;
        let (width, height) = image.dimensions();
        if picture["size"] != serde_json::json!([width, height])
            || picture["pixels"] != hash(&image)
        {
            different.push(format!("{name}: pixels"));
            continue;
        }
        for (key, fit) in [
            ("resize", FitMode::Resize),
            ("pad", FitMode::Pad),
            ("centre_crop", FitMode::CentreCrop),
        ] {
            if picture[key] != hash(&ImageProcessor::clip(side, fit).fit(&image)) {
                different.push(format!("{name}: {key}"));
            }
        }
    }
    assert!(different.is_empty(), "{different:#?}");
}

/// Without the switch, a picture lies as it is stored: what LLaVA's own loader gives.
#[test]
fn orientation_is_a_switch() {
    let stored = ImageLoading { exif_orientation: false, ..ImageLoading::default() };
    let of = |name: &str, loading: &ImageLoading| {
        decode_image(&bytes(name), name, loading).unwrap().pixels.dimensions()
    };
    for (name, [upright, lying]) in [
        ("exif_6.jpg", [(37, 43), (43, 37)]),
        ("exif_3.jpg", [(43, 37), (43, 37)]),
        ("exif.png", [(17, 23), (23, 17)]),
        ("exif.webp", [(13, 19), (19, 13)]),
    ] {
        assert_eq!(of(name, &ImageLoading::default()), upright, "{name}");
        assert_eq!(of(name, &stored), lying, "{name}");
    }
}

#[test]
fn transparency_and_wide_grey_are_choices() {
    let load = |name: &str, loading: ImageLoading| {
        decode_image(&bytes(name), name, &loading).unwrap().pixels
    };
    let white = ImageLoading { transparency: Transparency::White, ..ImageLoading::default() };
    for name in ["rgba.png", "grey_alpha.png", "palette_transparent.png", "grey_key.png"] {
        let (dropped, over) = (load(name, ImageLoading::default()), load(name, white));
        assert_ne!(dropped, over, "{name}");
        let lighter = dropped.as_raw().iter().zip(over.as_raw()).all(|(a, b)| a <= b);
        assert!(lighter, "{name} over white is nowhere darker");
    }
    let scaled = ImageLoading { grey16: Grey16::Scale, ..ImageLoading::default() };
    let (clipped, scaled) =
        (load("grey_16.png", ImageLoading::default()), load("grey_16.png", scaled));
    // Its samples go up to 700 of 65535.
    assert!(clipped.as_raw().contains(&255) && scaled.as_raw().iter().all(|value| *value <= 2));
}

#[test]
fn only_ordinary_files_of_a_bearable_size_are_opened() {
    let dir = tempfile::tempdir().unwrap();
    let loading = ImageLoading::default();
    let error = load_image(dir.path(), &loading).unwrap_err();
    assert!(matches!(error, ImageError::NotAFile { kind: "a directory", .. }), "{error}");
    let path = dir.path().join("large.png");
    let file = std::fs::File::create(&path).unwrap();
    // A file with a hole: nothing of it is on disk.
    file.set_len(6 << 30).unwrap();
    let error = load_image(&path, &loading).unwrap_err();
    assert!(matches!(error, ImageError::TooManyBytes { bytes, .. } if bytes == 6 << 30), "{error}");
    assert!(error.to_string().contains("max_bytes"), "{error}");
    let allowed = ImageLoading { max_bytes: 100, ..loading };
    assert!(matches!(
        load_image(fixture("rgb.png"), &allowed),
        Err(ImageError::TooManyBytes { max_bytes: 100, .. })
    ));
    #[cfg(unix)]
    {
        let error = load_image("/dev/zero", &loading).unwrap_err();
        assert!(matches!(error, ImageError::NotAFile { kind: "a device", .. }), "{error}");
        let pipe = dir.path().join("pipe.png");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        if made.is_ok_and(|status| status.success()) {
            let error = check_image_file(&pipe, &loading).unwrap_err();
            assert!(matches!(error, ImageError::NotAFile { kind: "a named pipe", .. }), "{error}");
            // Opening it would wait for a writer.
            assert!(load_image(&pipe, &loading).is_err());
        }
    }
}

#[test]
fn names_cannot_move_the_cursor() {
    let name = "a\u{1b}[2Jb\n\u{202e}c é 猫.png";
    assert_eq!(printable(Path::new(name)), "a\\u{1b}[2Jb\\n\\u{202e}c é 猫.png");
    let error = load_image(name, &ImageLoading::default()).unwrap_err().to_string();
    assert!(error.contains("a\\u{1b}[2Jb\\n") && !error.contains('\u{1b}'), "{error}");
}

/// A PNG of 10 x 10 pixels whose colour profile and text would unfold to gigabytes.
#[test]
fn profiles_are_not_unfolded() {
    let plain = bytes("10x10.png");
    // Deflate codes 258 zeros in two bits; here in stored blocks after one such run, which a decoder unfolds just the same.
    let chunk = |name: &[u8], data: &[u8]| {
        let mut out = (data.len() as u32).to_be_bytes().to_vec();
        out.extend(name);
        out.extend(data);
        out.extend(crc32(&out[4..]).to_be_bytes());
        out
    };
    let mut profile = b"x\0\0".to_vec();
    // A stream of fixed codes: a literal zero, then copies of 258 bytes at distance 1, never ended.
    profile.extend([0x78, 0x9c]);
    profile.extend(zero_bomb(1 << 20));
    let mut file = plain[..33].to_vec();
    file.extend(chunk(b"iCCP", &profile));
    file.extend(chunk(b"zTXt", &profile));
    file.extend(&plain[33..]);
    let image = decode_image(&file, "bomb", &ImageLoading::default()).unwrap().pixels;
    let expected = decode_image(&plain, "plain", &ImageLoading::default()).unwrap().pixels;
    assert_eq!(image, expected);
}

/// `length` bytes of Deflate that stand for about a hundred times as many zeros.
fn zero_bomb(length: usize) -> Vec<u8> {
    let mut bits: Vec<u8> = Vec::with_capacity(length * 8);
    // Last block, fixed codes; the literal 0 is 00110000.
    bits.extend([1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0]);
    while bits.len() < length * 8 {
        // Length 258 is 11000101, distance 1 is 00000.
        bits.extend([1, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0]);
    }
    bits.chunks(8).map(|byte| byte.iter().rev().fold(0, |all, bit| (all << 1) | bit)).collect()
}

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 }
        })
    })
}

/// Cut or damaged anywhere, a file is an error or a picture, and quick about it.
#[test]
fn damaged_files_do_not_panic() {
    let mut rng = dualspeed_core::rng::SplitMix::new(&[8]);
    for name in [
        "420.jpg",
        "420_progressive.jpg",
        "restarts.jpg",
        "scans.jpg",
        "ycck.jpg",
        "rgba_16.png",
        "interlaced.png",
    ] {
        let whole = bytes(name);
        for _ in 0..150 {
            let mut broken = whole.clone();
            for _ in 0..1 + rng.below(4) {
                let at = rng.below(broken.len());
                broken[at] = rng.below(256) as u8;
            }
            let loading = ImageLoading { max_pixels: 1 << 16, ..ImageLoading::default() };
            let _ = decode_image(&broken, name, &loading);
            // The last bytes of a PNG say only that it ends.
            let cut = &whole[..rng.below(whole.len() - 16)];
            assert!(decode_image(cut, name, &loading).is_err(), "{name} at {}", cut.len());
        }
    }
}
