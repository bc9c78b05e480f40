//! Cross entropy and distillation: logits of a chunk of rows by cuBLASLt, the rest in `kernels/losses.cu`.

use burn::tensor::DType;

use super::cast::cast;
use super::element::{Element, Tensor};
use super::error::CudaError;
use super::gpu::Gpu;
use super::kernel::{Arg, Grid};
use super::product::{Layout, Operands, Product};
use super::queue::submit;
use super::sources::LOSSES;
use super::tensor::{Rows, contiguous, dims, empty, matrix, served};
use crate::Backend;
use crate::types::*;

/// Logits that may exist at a time, of the student and of the teacher: 128 MiB each in bf16.
const CHUNK_LOGITS: usize = 1 << 26;

const THREADS: usize = 512;

/// Tensors that both passes read.
struct Inputs {
    hidden: Rows,
    lm_head: Tensor,
    teacher: Option<Rows>,
    targets: Tensor,
}

/// Sizes and layouts of both passes; `hidden` and `teacher` differ in their strides only.
#[derive(Clone, Copy)]
struct Problem {
    element: Element,
    rows: usize,
    width: usize,
    vocab: usize,
    hidden: Layout,
    teacher: Layout,
    lm_head: Layout,
    /// Rows of a chunk.
    step: usize,
    wide_targets: usize,
    tau: f64,
}

impl Problem {
    fn new(
        hidden: &Tensor,
        lm_head: &Tensor,
        targets: &Tensor,
        teacher: Option<&Tensor>,
        tau: f64,
    ) -> Option<(Self, Inputs)> {
        let element = served(&[hidden, lm_head])?;
        let wide_targets = match targets.dtype {
            DType::I64 => 1,
            DType::I32 => 0,
            _ => return None,
        };
        let vocab = dims(lm_head)[1];
        let step = (CHUNK_LOGITS / vocab).max(16);
        let (lm_head, lm_head_layout) = matrix(cast(lm_head.clone(), element.dtype()));
        let inputs = Inputs {
            hidden: Rows::new(hidden.clone()),
            lm_head,
            teacher: teacher.map(|teacher| Rows::new(cast(teacher.clone(), element.dtype()))),
            targets: contiguous(targets.clone()),
        };
        let hidden = &inputs.hidden;
        let problem = Self {
            element,
            rows: hidden.rows,
            width: hidden.width,
            vocab,
            hidden: hidden.layout(),
            teacher: inputs.teacher.as_ref().map_or(hidden.layout(), Rows::layout),
            lm_head: lm_head_layout,
            step: step.min(hidden.rows),
            wide_targets,
            tau,
        };
        Some((problem, inputs))
    }

    fn logits_buffer(&self, like: &Tensor) -> Tensor {
        empty(like, &[self.step, self.vocab], self.element.dtype())
    }

    /// Logits of `len` rows from `start`, of the student and of the teacher where there is one.
    fn logits(
        &self,
        gpu: &mut Gpu,
        (start, len): (usize, usize),
        [hidden, teacher, lm_head]: [u64; 3],
        [logits, teacher_logits]: [u64; 2],
    ) -> Result<(), CudaError> {
        for (rows, layout, c) in
            [(hidden, self.hidden, logits), (teacher, self.teacher, teacher_logits)]
        {
            if rows == 0 {
                continue;
            }
            let sizes = [len, self.vocab, self.width];
            let plan = Product::new(sizes, layout, self.lm_head, self.element);
            let a = at(rows, start * layout.stride, self.element);
            gpu.product(plan, Operands::new(a, lm_head, c), 1.0, 0.0)?;
        }
        Ok(())
    }

    /// First row and number of rows of every chunk.
    fn chunks(&self) -> Vec<(usize, usize)> {
        let rows = self.rows;
        (0..rows).step_by(self.step).map(|at| (at, self.step.min(rows - at))).collect()
    }

    fn scalars(&self, len: usize) -> [Arg; 4] {
        let (vocab, tau) = (Arg::Long(self.vocab), Arg::Float(self.tau));
        [vocab, Arg::Long(len), tau, Arg::Int(self.wide_targets)]
    }

    /// Bytes of one target.
    fn target_bytes(&self) -> usize {
        4 << self.wide_targets
    }
}

pub(super) fn token_losses(
    hidden: &Tensor,
    lm_head: &Tensor,
    targets: &Tensor,
    teacher: Option<&Tensor>,
    tau: f64,
) -> Option<Tensor> {
    let (p, inputs) = Problem::new(hidden, lm_head, targets, teacher, tau)?;
    let out = empty(hidden, &[p.rows, 3], DType::F32);
    let logits = p.logits_buffer(hidden);
    let teacher_logits = teacher.map(|_| p.logits_buffer(hidden));
    submit(
        [
            Some(&inputs.hidden.tensor),
            inputs.teacher.as_ref().map(|teacher| &teacher.tensor),
            Some(&inputs.lm_head),
            Some(&inputs.targets),
            Some(&logits),
            teacher_logits.as_ref(),
            Some(&out),
        ],
        move |gpu, [hidden, teacher, lm_head, targets, logits, teacher_logits, out]| {
            for (start, len) in p.chunks() {
                let buffers = [logits, teacher_logits];
                p.logits(gpu, (start, len), [hidden, teacher, lm_head], buffers)?;
                let targets = targets + (start * p.target_bytes()) as u64;
                let out = out + (start * 12) as u64;
                let mut args = [logits, teacher_logits, targets, out].map(Arg::Address).to_vec();
                args.extend(p.scalars(len));
                let name = format!("token_losses_forward_{}", p.element.suffix());
                gpu.launch(&LOSSES, "", &name, Grid::new(len, THREADS), &args)?;
            }
            Ok(())
        },
    );
    Some(out)
}

/// The address of an element.
fn at(base: u64, elements: usize, element: Element) -> u64 {
    base + (elements * element.bytes()) as u64
}

pub(super) fn token_losses_backward<B: Backend<FloatTensorPrimitive = Tensor>>(
    hidden: &Tensor,
    lm_head: &Tensor,
    targets: &Tensor,
    teacher: Option<&Tensor>,
    tau: f64,
    grad: &Tensor,
    [needs_hidden, needs_lm_head]: [bool; 2],
) -> Option<TokenLossesGrads<B>> {
    let (p, inputs) = Problem::new(hidden, lm_head, targets, teacher, tau)?;
    let (width, element) = (p.width, p.element);
    let lm_head_dtype = lm_head.dtype;
    let grad = contiguous(cast(grad.clone(), DType::F32));
    let grad_hidden = needs_hidden.then(|| empty(hidden, &[p.rows, width], element.dtype()));
    // Summed over the chunks in f32.
    let grad_lm_head = needs_lm_head.then(|| empty(hidden, &[width, p.vocab], DType::F32));
    let logits = p.logits_buffer(hidden);
    let teacher_logits = teacher.map(|_| p.logits_buffer(hidden));
    let operands = [
        Some(&inputs.hidden.tensor),
        inputs.teacher.as_ref().map(|teacher| &teacher.tensor),
        Some(&inputs.lm_head),
        Some(&inputs.targets),
        Some(&grad),
        Some(&logits),
        teacher_logits.as_ref(),
        grad_hidden.as_ref(),
        grad_lm_head.as_ref(),
    ];
    submit(operands, move |gpu, addresses| {
        let [hidden, teacher, lm_head, targets, grad, logits, teacher_logits, dx, dw] = addresses;
        for (start, len) in p.chunks() {
            p.logits(gpu, (start, len), [hidden, teacher, lm_head], [logits, teacher_logits])?;
            let targets = targets + (start * p.target_bytes()) as u64;
            let grad = grad + (start * 12) as u64;
            let mut args = [logits, teacher_logits, targets, grad].map(Arg::Address).to_vec();
            args.extend(p.scalars(len));
            let name = format!("token_losses_backward_{}", element.suffix());
            gpu.launch(&LOSSES, "", &name, Grid::new(len, THREADS), &args)?;

            let dense = Layout::rows(p.vocab);
            if dx != 0 {
                let c = at(dx, start * width, element);
                let plan = Product::new([len, width, p.vocab], dense, p.lm_head.t(), element);
                gpu.product(plan, Operands::new(logits, lm_head, c), 1.0, 0.0)?;
            }
            if dw != 0 {
                let beta = if start == 0 { 0.0 } else { 1.0 };
                let a = at(hidden, start * p.hidden.stride, element);
                let plan = Product::new([width, p.vocab, len], p.hidden.t(), dense, element);
                let operands = Operands::new(a, logits, dw);
                gpu.product(plan.into(Element::F32), operands, 1.0, beta)?;
            }
        }
        Ok(())
    });
    Some(TokenLossesGrads {
        hidden: grad_hidden,
        lm_head: grad_lm_head.map(|grad| cast(grad, lm_head_dtype)),
    })
}
