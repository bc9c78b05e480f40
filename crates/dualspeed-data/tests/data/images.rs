//! Good, odd and bad images.

use std::io::Cursor;

use dualspeed_data::picture::resample::Filter;
use dualspeed_data::picture::resize_rgb;
use dualspeed_data::{
    FitMode, ImageError, ImageLoading, ImageProcessor, LoadedImage, Transparency, decode_image,
    load_image, preprocess_bytes,
};
use image::codecs::gif::GifEncoder;
use image::{DynamicImage, Frame, ImageFormat, Luma, Rgb, RgbImage, Rgba, RgbaImage};

fn encode(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn decode(bytes: &[u8]) -> Result<LoadedImage, ImageError> {
    decode_image(bytes, "x", &ImageLoading::default())
}

fn pattern(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        Rgb([x * 37 + y * 11, x * x * 5 + y * 3, x * y * 13 + 90].map(|v| (v % 256) as u8))
    })
}

#[test]
fn unusual_pixels_become_rgb() {
    let grey16 = image::ImageBuffer::<Luma<u16>, _>::from_pixel(3, 2, Luma([0x80u16]));
    assert_eq!(
        decode(&encode(grey16, ImageFormat::Png)).unwrap().pixels.get_pixel(1, 1).0,
        [0x80; 3]
    );

    let mut clear = RgbaImage::from_pixel(2, 1, Rgba([200, 0, 0, 0]));
    clear.put_pixel(1, 0, Rgba([0, 0, 0, 128]));
    let clear = encode(clear, ImageFormat::Png);
    assert_eq!(decode(&clear).unwrap().pixels.get_pixel(0, 0).0, [200, 0, 0]);
    let white = ImageLoading { transparency: Transparency::White, ..Default::default() };
    let over_white = decode_image(&clear, "x", &white).unwrap().pixels;
    assert_eq!(over_white.get_pixel(0, 0).0, [255; 3]);
    assert_eq!(over_white.get_pixel(1, 0).0, [127; 3]);

    let cmyk = decode(include_bytes!("fixtures/cmyk.jpg")).unwrap().pixels;
    let [r, g, b] = cmyk.get_pixel(2, 8).0;
    assert!(r < 40 && g > 120 && b > 120, "cyan, not {:?}", [r, g, b]);
    assert!(cmyk.get_pixel(13, 8).0.iter().all(|&c| c > 240), "no ink is white");
}

#[test]
fn animations_give_their_first_frame_and_say_so() {
    let mut gif = Vec::new();
    let frame = |colour| Frame::new(RgbaImage::from_pixel(8, 8, Rgba(colour)));
    GifEncoder::new(&mut gif)
        .encode_frames([frame([255, 0, 0, 255]), frame([0, 0, 255, 255])])
        .unwrap();
    let webp = include_bytes!("fixtures/animated.webp").to_vec();
    let png = include_bytes!("fixtures/animated.png").to_vec();
    for bytes in [gif, webp, png] {
        let image = decode(&bytes).unwrap();
        assert!(image.animated);
        assert_eq!(image.pixels.get_pixel(4, 4).0, [255, 0, 0]);
    }
    assert!(!decode(&encode(pattern(4, 4), ImageFormat::Gif)).unwrap().animated);
    assert!(!decode(&encode(pattern(4, 4), ImageFormat::Png)).unwrap().animated);
}

#[test]
fn cut_off_files_are_truncated_at_any_length() {
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Gif] {
        let whole = encode(pattern(40, 30), format);
        assert!(decode(&whole).is_ok());
        for share in [3, 5, 8, 9] {
            let error = decode(&whole[..whole.len() * share / 10]).expect_err("truncated");
            let fine = matches!(error, ImageError::Truncated { .. } | ImageError::Decode { .. });
            assert!(fine, "{format:?} at {share}/10: {error}");
            if matches!(format, ImageFormat::Png | ImageFormat::Jpeg) {
                assert!(
                    matches!(error, ImageError::Truncated { .. }),
                    "{format:?} at {share}/10: {error}"
                );
            }
        }
    }
    // Data after the end marker (cameras append a film) is not a cut.
    let mut jpeg = encode(pattern(9, 9), ImageFormat::Jpeg);
    jpeg.extend([0xff, 0xda, 7, 7, 7]);
    assert!(decode(&jpeg).is_ok());
}

#[test]
fn bad_files_are_named() {
    assert!(matches!(decode(b""), Err(ImageError::EmptyFile { .. })));
    assert!(matches!(decode(b"<html>not found</html>"), Err(ImageError::UnknownFormat { .. })));
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:a1\nsize 48213\n";
    assert!(matches!(decode(pointer), Err(ImageError::LfsPointer { .. })));
    let missing = load_image("/nowhere/cat.jpg", &ImageLoading::default()).unwrap_err();
    assert!(matches!(missing, ImageError::Read { .. }));
    assert!(missing.to_string().contains("/nowhere/cat.jpg"));
}

#[test]
fn sizes_are_checked_before_decoding() {
    // A header that announces 70,000 x 20 pixels, with no data at all behind it.
    let header = |width: u32, height: u32| {
        let mut png = encode(RgbImage::new(1, 1), ImageFormat::Png);
        png[16..20].copy_from_slice(&width.to_be_bytes());
        png[20..24].copy_from_slice(&height.to_be_bytes());
        png.truncate(33);
        png
    };
    assert!(matches!(decode(&header(70_000, 20)), Err(ImageError::TooLarge { width: 70_000, .. })));
    assert!(matches!(decode(&header(16_000, 16_000)), Err(ImageError::TooLarge { .. })));
    assert!(matches!(decode(&header(0, 5)), Err(ImageError::ZeroSize { .. })));
    let long = encode(RgbImage::new(30_000, 1), ImageFormat::Jpeg);
    assert!(decode(&long).is_ok());
    let strict = ImageLoading { max_side: 20_000, ..Default::default() };
    let error = decode_image(&long, "x", &strict).unwrap_err();
    assert!(matches!(error, ImageError::TooLarge { width: 30_000, .. }));
    assert!(error.to_string().contains("max_side"), "{error}");
}

#[test]
fn resampling_is_pillows() {
    let fixture: serde_json::Value =
        serde_json::from_str(include_str!("fixtures/resize.json")).unwrap();
    for case in fixture["cases"].as_array().unwrap() {
        let size = |key: &str| {
            (case[key][0].as_u64().unwrap() as u32, case[key][1].as_u64().unwrap() as u32)
        };
        let filter = if case["filter"] == "bicubic" { Filter::Bicubic } else { Filter::Bilinear };
        let ((w, h), (to_w, to_h)) = (size("from"), size("to"));
        let ours = resize_rgb(&pattern(w, h), to_w, to_h, filter);
        let theirs = case["pixels"].as_array().unwrap().iter().map(|v| v.as_i64().unwrap());
        for (i, (ours, theirs)) in ours.as_raw().iter().zip(theirs).enumerate() {
            assert_eq!(i64::from(*ours), theirs, "{filter:?} {w}x{h} at {i}");
        }
    }
}

#[test]
fn fitting_and_normalising() {
    let wide = RgbImage::from_pixel(40, 20, Rgb([255, 0, 0]));
    let process = |fit| ImageProcessor::clip(8, fit);

    let padded = ImageProcessor::clip(16, FitMode::Pad).fit(&wide);
    assert_eq!(padded.get_pixel(8, 8).0, [255, 0, 0]);
    assert_eq!(padded.get_pixel(8, 0).0, [122, 116, 104], "the mean colour");
    assert_eq!(process(FitMode::Resize).fit(&wide).get_pixel(0, 0).0, [255, 0, 0]);

    let mut sided = wide.clone();
    for (x, _, pixel) in sided.enumerate_pixels_mut() {
        if !(10..30).contains(&x) {
            *pixel = Rgb([0, 0, 255]);
        }
    }
    let centre = process(FitMode::CentreCrop).fit(&sided);
    assert_eq!(centre.dimensions(), (8, 8));
    assert!(centre.pixels().filter(|pixel| pixel.0 == [255, 0, 0]).count() >= 48);

    let processor = process(FitMode::Resize);
    let image = processor.process(&wide);
    assert_eq!(image.pixels.len(), 3 * 8 * 8);
    for (channel, value) in [1.0, 0.0, 0.0].into_iter().enumerate() {
        let expected = (value - processor.mean[channel]) / processor.std[channel];
        assert!(image.pixels[channel * 64..][..64].iter().all(|p| (p - expected).abs() < 1e-6));
    }
    let other = ImageProcessor { mean: [0.5; 3], ..processor.clone() };
    assert_eq!(image.key, processor.process(&wide).key);
    assert_ne!(image.key, other.process(&wide).key, "the normalisation is part of the key");
    assert_ne!(image.key, processor.process(&sided).key);

    let thin = encode(RgbImage::new(12_000, 1), ImageFormat::Png);
    for fit in [FitMode::Pad, FitMode::Resize, FitMode::CentreCrop] {
        let image = preprocess_bytes(&thin, "thin", &process(fit)).unwrap();
        assert!(image.pixels.iter().all(|value| value.is_finite()), "{fit:?}");
    }
    assert!(ImageProcessor { size: 0, ..processor.clone() }.validate().is_err());
    assert!(ImageProcessor { std: [1.0, 0.0, 1.0], ..processor }.validate().is_err());
}
