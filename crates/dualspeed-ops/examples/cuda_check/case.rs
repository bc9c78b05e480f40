//! One check: both sides, forward and backward.

use burn::tensor::DType;
use burn_cuda::Cuda;
use burn_ndarray::NdArray;
use dualspeed_ops::Backend;

use crate::data::{Flat, relative_error, tensor, to_vec, values};

/// An operation with its sizes and layouts, and the tensors it takes.
pub trait Case {
    fn name(&self) -> String;
    /// Lengths of the flat inputs; `true`: activations, `false`: weights.
    fn inputs(&self) -> Vec<(usize, bool)>;
    /// By how much roundings add up, compared with a single operation.
    fn depth(&self) -> f64 {
        1.0
    }
    /// Whether an element of the output changes smoothly.
    fn smooth(&self, _element: usize) -> bool {
        true
    }
    /// The plain body on request.
    fn run<B: Backend>(&self, plain: bool, x: &[Flat<B>]) -> Flat<B>;
}

/// Counts, and the seed of the next input.
pub struct Report {
    pub checks: usize,
    pub failures: usize,
    seed: u64,
    filter: String,
}

impl Report {
    pub fn new(seed: u64, filter: String) -> Self {
        Self { checks: 0, failures: 0, seed, filter }
    }

    pub fn wants(&self, name: &str) -> bool {
        name.contains(&self.filter)
    }

    pub fn seed(&mut self) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.seed
    }

    /// Prints a line; `errors` and tolerance as relative errors.
    pub fn line(&mut self, name: &str, errors: &[f64], tolerance: f64, extra: &str) {
        let worst =
            errors.iter().fold(0.0, |a: f64, b| if b.is_nan() { f64::NAN } else { a.max(*b) });
        let passed = worst <= tolerance;
        self.checks += 1;
        self.failures += usize::from(!passed);
        let verdict = if passed { "ok  " } else { "FAIL" };
        let errors: Vec<String> = errors.iter().map(|error| format!("{error:.1e}")).collect();
        println!("{verdict} {name}: {} (at most {tolerance:.0e}){extra}", errors.join(" "));
    }
}

/// Types of activations and weights, and the tolerance.
const TYPES: [(&str, DType, DType, f64); 4] = [
    ("f32", DType::F32, DType::F32, 2e-5),
    ("bf16", DType::BF16, DType::BF16, 1e-2),
    ("bf16+f32", DType::BF16, DType::F32, 1e-2),
    ("f16", DType::F16, DType::F16, 2e-3),
];

/// Output and gradients.
fn run<B: Backend>(
    case: &impl Case,
    plain: bool,
    inputs: &[Vec<f64>],
    dtypes: &[DType],
    cotangent_seed: u64,
    rounding: DType,
) -> (Vec<f64>, Vec<Vec<f64>>) {
    let leaves: Vec<Flat<B>> = inputs
        .iter()
        .zip(dtypes)
        .map(|(input, dtype)| tensor(input, [input.len()], *dtype).require_grad())
        .collect();
    let output = case.run::<B>(plain, &leaves);
    let cotangent = values(output.dims()[0], rounding, cotangent_seed);
    let cotangent = tensor(&cotangent, output.dims(), output.dtype());
    let result = to_vec(output.clone().inner());
    let grads = (output * cotangent).sum().backward();
    let grads = leaves.iter().map(|leaf| leaf.grad(&grads).map(to_vec).unwrap_or_default());
    (result, grads.collect())
}

/// All types of one case; in f32 finite differences too.
pub fn check(report: &mut Report, case: &impl Case) {
    let name = case.name();
    if !report.wants(&name) {
        return;
    }
    for (types, activation, weight, tolerance) in TYPES {
        let sizes = case.inputs();
        if types == "bf16+f32" && sizes.iter().all(|(_, activation)| *activation) {
            continue;
        }
        let dtypes: Vec<DType> =
            sizes.iter().map(|(_, x)| if *x { activation } else { weight }).collect();
        // f32 weights count as what they are rounded to in a product, so that their rounding is no error.
        let inputs: Vec<Vec<f64>> =
            sizes.iter().map(|(len, _)| values(*len, activation, report.seed())).collect();
        let cotangent = report.seed();
        let wide = vec![DType::F64; inputs.len()];
        let (expected, expected_grads) =
            run::<NdArray<f64>>(case, true, &inputs, &wide, cotangent, activation);
        let ours = || run::<Cuda<f32, i32>>(case, false, &inputs, &dtypes, cotangent, activation);
        let (actual, actual_grads) = ours();
        let mut errors = vec![relative_error(&actual, &expected)];
        for (ours, theirs) in actual_grads.iter().zip(&expected_grads) {
            errors.push(relative_error(ours, theirs));
        }
        let again = ours();
        let same = again.0 == actual && again.1 == actual_grads;
        report.line(
            &format!("{name}, {types}"),
            &errors,
            if same { tolerance * case.depth() } else { -1.0 },
            if same { "" } else { " NOT DETERMINISTIC" },
        );
        if types == "f32" {
            differences(report, case, &inputs, &actual_grads, cotangent);
        }
    }
}

/// `(f(x + h u) - f(x - h u)) / 2 h` against the gradient along a random direction `u`, in f32 on the device.
fn differences(
    report: &mut Report,
    case: &impl Case,
    inputs: &[Vec<f64>],
    grads: &[Vec<f64>],
    cotangent_seed: u64,
) {
    const STEP: f64 = 1.0 / 256.0;
    let dtypes = vec![DType::F32; inputs.len()];
    let directions: Vec<Vec<f64>> =
        inputs.iter().map(|input| values(input.len(), DType::BF16, report.seed())).collect();
    let along: f64 = directions
        .iter()
        .zip(grads)
        .flat_map(|(direction, grad)| direction.iter().zip(grad).map(|(d, g)| d * g))
        .sum();
    let value = |sign: f64| -> f64 {
        // A constant has no gradient and stays where it is.
        let step = |grad: &Vec<f64>| if grad.is_empty() { 0.0 } else { sign * STEP };
        let moved: Vec<Vec<f64>> = inputs
            .iter()
            .zip(&directions)
            .zip(grads)
            .map(|((x, d), g)| x.iter().zip(d).map(|(x, d)| x + step(g) * d).collect())
            .collect();
        let leaves: Vec<Flat<Cuda<f32, i32>>> = moved
            .iter()
            .zip(&dtypes)
            .map(|(input, dtype)| tensor(input, [input.len()], *dtype))
            .collect();
        let output = to_vec(case.run::<Cuda<f32, i32>>(false, &leaves).inner());
        let cotangent = values(output.len(), DType::F32, cotangent_seed);
        let terms = output.iter().zip(cotangent).enumerate();
        terms.filter(|(i, _)| case.smooth(*i)).map(|(_, (y, c))| y * c).sum()
    };
    let measured = (value(1.0) - value(-1.0)) / (2.0 * STEP);
    // The step's own error is its square times a third derivative; the gradients' size sets the scale.
    let scale: f64 = grads.iter().flatten().map(|g| g * g).sum::<f64>().sqrt();
    let error = (measured - along).abs() / scale.max(1e-30);
    report.line(&format!("{}, finite differences", case.name()), &[error], 5e-2, "");
}
