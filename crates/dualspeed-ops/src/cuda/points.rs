//! Diverse selection, max-min and by greedy MAP: similarities by one batched product, all picks of the batch in one kernel.

use burn::tensor::DType;

use super::element::{Element, Tensor};
use super::kernel::{Arg, Grid};
use super::product::{Batch, Layout, Operands, Product};
use super::queue::submit;
use super::sources::POINTS;
use super::tensor::{contiguous, dims, empty, served};

/// Most rows of one image that the kernels take.
const MAX_ROWS: usize = 8192;

/// `indices` is the type of the result. f32 products are exact ones even where tf32 is allowed: the distances decide.
pub(super) fn farthest_points(features: &Tensor, keep: usize, indices: DType) -> Option<Tensor> {
    let element = served(&[features])?;
    let [b, n, d]: [usize; 3] = dims(features).try_into().ok()?;
    let wide = match indices {
        DType::I64 => 1,
        DType::I32 => 0,
        _ => return None,
    };
    if keep == 0 || keep > n || n > MAX_ROWS || b > 65_535 {
        return None;
    }
    let features = contiguous(features.clone());
    let picks = empty(&features, &[b, keep], indices);
    let gram = empty(&features, &[b, n, n], DType::F32);
    let [scale, isolation] = [(); 2].map(|()| empty(&features, &[b, n], DType::F32));
    // Narrow features go into the product as they are and are scaled after it; f32 ones are normalised first.
    let raw = element != Element::F32;
    let unit = (!raw).then(|| empty(&features, &[b, n, d], DType::F32));
    let rows = Layout::rows(d);
    let plan = Product {
        batch: Some(Batch { count: b, a: n * d, b: n * d, c: n * n }),
        exact: true,
        ..Product::new([n, n, d], rows, rows.t(), element).into(Element::F32)
    };
    submit(
        [Some(&features), unit.as_ref(), Some(&gram), Some(&scale), Some(&isolation), Some(&picks)],
        move |gpu, [features, unit, gram, scale, isolation, picks]| {
            use Arg::{Address, Int, Long};
            let input = match unit {
                0 => features,
                unit => {
                    let args = [Address(features), Address(unit), Long(b * n), Long(d)];
                    gpu.launch(&POINTS, "", "normalise_rows_f32", Grid::new(b * n, 256), &args)?;
                    unit
                }
            };
            gpu.product(plan, Operands::new(input, input, gram), 1.0, 0.0)?;
            let sizes = [Int(b), Int(n)];
            let raw = Int(usize::from(raw));
            let mut args = [gram, scale].map(Address).to_vec();
            args.extend(sizes.clone());
            args.push(raw.clone());
            let grid = Grid::new((b * n).div_ceil(256), 256);
            gpu.launch(&POINTS, "", "farthest_scale", grid, &args)?;
            let mut args = [gram, scale, isolation].map(Address).to_vec();
            args.extend(sizes.clone());
            args.push(raw);
            let grid = Grid { blocks: [n.div_ceil(8), b, 1], threads: 256, shared: 0 };
            gpu.launch(&POINTS, "", "farthest_isolation", grid, &args)?;
            let mut args = [gram, scale, isolation, picks].map(Address).to_vec();
            args.extend(sizes);
            args.extend([Int(keep), Int(wide)]);
            let threads = n.next_multiple_of(32).min(1024);
            gpu.launch(&POINTS, "", "farthest_picks", Grid::new(b, threads), &args)
        },
    );
    Some(picks)
}

/// Most picks of [`greedy_map`]: what one block keeps in shared memory.
const MAX_PICKS: usize = 8192;

/// Greedy MAP of a determinantal point process; `indices` is the type of the result.
pub(super) fn greedy_map(features: &Tensor, keep: usize, indices: DType) -> Option<Tensor> {
    let element = served(&[features])?;
    let [b, n, d]: [usize; 3] = dims(features).try_into().ok()?;
    let wide = match indices {
        DType::I64 => 1,
        DType::I32 => 0,
        _ => return None,
    };
    if keep == 0 || keep > n.min(MAX_PICKS) || n > MAX_ROWS || b > 65_535 {
        return None;
    }
    let features = contiguous(features.clone());
    let picks = empty(&features, &[b, keep], indices);
    let gram = empty(&features, &[b, n, n], DType::F32);
    let factors = empty(&features, &[b, keep, n], DType::F32);
    let rows = Layout::rows(d);
    let plan = Product {
        batch: Some(Batch { count: b, a: n * d, b: n * d, c: n * n }),
        exact: true,
        ..Product::new([n, n, d], rows, rows.t(), element).into(Element::F32)
    };
    submit(
        [Some(&features), Some(&gram), Some(&factors), Some(&picks)],
        move |gpu, [features, gram, factors, picks]| {
            gpu.product(plan, Operands::new(features, features, gram), 1.0, 0.0)?;
            let mut args = [gram, factors, picks].map(Arg::Address).to_vec();
            args.extend([b, n, keep, wide].map(Arg::Int));
            let threads = n.next_multiple_of(32).min(1024);
            let grid = Grid { blocks: [b, 1, 1], threads, shared: keep * 4 };
            gpu.launch(&POINTS, "", "greedy_map", grid, &args)
        },
    );
    Some(picks)
}
