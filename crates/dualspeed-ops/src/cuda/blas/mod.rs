//! Matrix products through cuBLASLt.
//!
//! Our matrices are row-major and cuBLASLt's column-major, so what is computed is `C^T = B^T A^T`: the same memory read
//! the other way. A transposed view is an operand flag, never a copy.
#![allow(unsafe_code)]

mod choice;

use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::cublaslt::result as lt;
use cudarc::cublaslt::sys;
use cudarc::driver::sys as driver;

use super::driver::check;
use super::element::Element;
use super::error::CudaError;
use super::product::{Layout, Operands, Product};

/// Scratch memory for one product; what NVIDIA recommends on Hopper. One product runs at a time.
const WORKSPACE: usize = 32 << 20;

/// Multiplications and additions from which a product's algorithm is chosen by measuring.
const MEASURED: f64 = 2.5e8;

/// Algorithms that are measured: of six, the best was often not one.
const CANDIDATES: usize = 24;

static TF32: AtomicBool = AtomicBool::new(false);

/// Lets products of f32 matrices round their operands to tf32 (10 bits of mantissa), several times faster. Off at first,
/// as in PyTorch. Products of bf16 and f16 are not concerned.
pub fn allow_tf32(allow: bool) {
    TF32.store(allow, Ordering::Relaxed);
}

/// What else a plan depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Conditions {
    /// Powers of two that divide the addresses, at most 256.
    alignment: [u32; 3],
    accumulate: bool,
    tf32: bool,
}

/// Descriptors and the chosen algorithm; alive as long as the process.
#[derive(Clone, Copy)]
struct Plan {
    matmul: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    c: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// The library on one device.
pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    workspace: u64,
    /// What the device is, for choices on disk.
    device: String,
    /// Whether the driver has the clock that measuring needs: CUDA 12.8 and later.
    measures: bool,
    plans: HashMap<(Product, Conditions), Plan>,
}

fn blas<T>(
    call: &'static str,
    product: &Product,
    result: Result<T, lt::CublasError>,
) -> Result<T, CudaError> {
    result.map_err(|error| CudaError::Blas {
        call,
        code: format!("{error}"),
        product: format!("{product:?}"),
    })
}

fn data_type(element: Element) -> sys::cudaDataType {
    match element {
        Element::F32 => sys::cudaDataType::CUDA_R_32F,
        Element::F16 => sys::cudaDataType::CUDA_R_16F,
        Element::BF16 => sys::cudaDataType::CUDA_R_16BF,
    }
}

fn address<T>(value: &T) -> *const c_void {
    (value as *const T).cast()
}

impl Blas {
    pub(super) fn new(device: String) -> Result<Self, CudaError> {
        let mut workspace = 0;
        // SAFETY: the pointer is to a local; the context is current.
        let code = unsafe { driver::cuMemAlloc_v2(&mut workspace, WORKSPACE) };
        check("cuMemAlloc", code)?;
        let handle = lt::create_handle().map_err(|error| CudaError::Blas {
            call: "cublasLtCreate",
            code: format!("{error}"),
            product: "the device".into(),
        })?;
        let mut version = 0;
        // SAFETY: the pointer is to a local.
        unsafe { driver::cuDriverGetVersion(&mut version) };
        let measures = version >= 12_080;
        Ok(Self { handle, workspace, device, measures, plans: HashMap::new() })
    }

    /// Queues one product; `beta` 0 means that `C` is not read.
    pub(super) fn product(
        &mut self,
        product: Product,
        operands: Operands,
        alpha: f32,
        beta: f32,
        stream: driver::CUstream,
    ) -> Result<(), CudaError> {
        let add = if operands.add == 0 { operands.c } else { operands.add };
        let alignment = [operands.a, operands.b, operands.c | add]
            .map(|address| 1 << address.trailing_zeros().min(8));
        let wide = product.input == Element::F32 && !product.exact;
        let tf32 = wide && TF32.load(Ordering::Relaxed);
        let conditions = Conditions { alignment, accumulate: beta != 0.0, tf32 };
        let key = (product, conditions);
        if !self.plans.contains_key(&key) {
            let plan = self.plan(&product, &conditions, &operands, stream)?;
            self.plans.insert(key, plan);
        }
        let Some(plan) = self.plans.get(&key) else { return Ok(()) };
        let operands = Operands { add, ..operands };
        self.run(&product, plan, &operands, alpha, beta, stream)
    }

    fn plan(
        &self,
        product: &Product,
        conditions: &Conditions,
        operands: &Operands,
        stream: driver::CUstream,
    ) -> Result<Plan, CudaError> {
        let p = product;
        let compute = match (p.input, conditions.tf32) {
            (Element::F32, true) => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
            _ => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        let matmul = lt::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F);
        let matmul = blas("cublasLtMatmulDescCreate", p, matmul)?;
        // Column-major, the first operand is our B, `[n, k]` with k columns where B is not transposed.
        let layout = |element, rows: usize, columns: usize, l: Layout, offset: Option<usize>| {
            let (rows, columns) = if l.transposed { (rows, columns) } else { (columns, rows) };
            self.layout(p, element, [rows, columns, l.stride], offset)
        };
        let batch = p.batch;
        let first = layout(p.input, p.k, p.n, p.b, batch.map(|batch| batch.b))?;
        let second = layout(p.input, p.m, p.k, p.a, batch.map(|batch| batch.a))?;
        let offset = batch.map(|batch| batch.c);
        let c = self.layout(p, p.output, [p.n, p.m, p.c_stride], offset)?;

        let transpose = |transposed| -> i32 { i32::from(transposed) };
        type D = sys::cublasLtMatmulDescAttributes_t;
        let mut attributes = vec![
            (D::CUBLASLT_MATMUL_DESC_TRANSA, transpose(p.b.transposed)),
            (D::CUBLASLT_MATMUL_DESC_TRANSB, transpose(p.a.transposed)),
        ];
        if p.bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as i32;
            attributes.push((D::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue));
        }
        for (attribute, value) in attributes {
            // SAFETY: the descriptor is alive; all three attributes are 32 bits wide.
            let result = unsafe {
                lt::set_matmul_desc_attribute(matmul, attribute, address(&value), size_of::<i32>())
            };
            blas("cublasLtMatmulDescSetAttribute", p, result)?;
        }
        let algorithms = self.algorithms(p, conditions, [first, second, c], matmul)?;
        let Some(algorithm) = algorithms.first().copied() else {
            let call = "cublasLtMatmulAlgoGetHeuristic";
            let (code, product) = ("no algorithm".to_owned(), format!("{p:?}"));
            return Err(CudaError::Blas { call, code, product });
        };
        let mut plan = Plan { matmul, a: first, b: second, c, algorithm };
        let count = p.batch.map_or(1, |batch| batch.count);
        if self.measures && (p.m * p.n * p.k * count) as f64 >= MEASURED && algorithms.len() > 1 {
            plan.algorithm = self.chosen(p, conditions, &plan, &algorithms, operands, stream);
        }
        Ok(plan)
    }

    /// Queues a product by a plan.
    fn run(
        &self,
        product: &Product,
        plan: &Plan,
        operands: &Operands,
        alpha: f32,
        beta: f32,
        stream: driver::CUstream,
    ) -> Result<(), CudaError> {
        // SAFETY: the descriptors are alive; the operands' memory holds the matrices that they describe (the callers take
        // the strides from the tensors' metadata); workspace and stream belong to this context.
        let result = unsafe {
            let bias = match product.bias {
                true => lt::set_matmul_desc_attribute(
                    plan.matmul,
                    sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                    address(&operands.bias),
                    size_of::<u64>(),
                ),
                false => Ok(()),
            };
            bias.and_then(|()| {
                lt::matmul(
                    self.handle,
                    plan.matmul,
                    address(&alpha),
                    address(&beta),
                    operands.b as *const c_void,
                    plan.a,
                    operands.a as *const c_void,
                    plan.b,
                    operands.add as *const c_void,
                    plan.c,
                    operands.c as *mut c_void,
                    plan.c,
                    &plan.algorithm,
                    self.workspace as *mut c_void,
                    WORKSPACE,
                    stream.cast(),
                )
            })
        };
        blas("cublasLtMatmul", product, result)
    }

    /// A column-major matrix.
    fn layout(
        &self,
        product: &Product,
        element: Element,
        [rows, columns, stride]: [usize; 3],
        offset: Option<usize>,
    ) -> Result<sys::cublasLtMatrixLayout_t, CudaError> {
        let stride = stride.max(rows).max(1);
        let layout = lt::create_matrix_layout(
            data_type(element),
            rows as u64,
            columns as u64,
            stride as i64,
        );
        let layout = blas("cublasLtMatrixLayoutCreate", product, layout)?;
        if let (Some(batch), Some(offset)) = (product.batch, offset) {
            type L = sys::cublasLtMatrixLayoutAttribute_t;
            let (count, offset) = (batch.count as i32, offset as i64);
            // SAFETY: the layout is alive; the attributes are 32 and 64 bits wide.
            let result = unsafe {
                lt::set_matrix_layout_attribute(
                    layout,
                    L::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
                    address(&count),
                    size_of::<i32>(),
                )
                .and_then(|()| {
                    lt::set_matrix_layout_attribute(
                        layout,
                        L::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                        address(&offset),
                        size_of::<i64>(),
                    )
                })
            };
            blas("cublasLtMatrixLayoutSetAttribute", product, result)?;
        }
        Ok(layout)
    }

    /// The library's choices, the first first: one for a product that is too small to be measured.
    fn algorithms(
        &self,
        product: &Product,
        conditions: &Conditions,
        [first, second, c]: [sys::cublasLtMatrixLayout_t; 3],
        matmul: sys::cublasLtMatmulDesc_t,
    ) -> Result<Vec<sys::cublasLtMatmulAlgo_t>, CudaError> {
        type P = sys::cublasLtMatmulPreferenceAttributes_t;
        let preference = blas("cublasLtMatmulPreferenceCreate", product, lt::create_matmul_pref())?;
        let [a, b, d] = conditions.alignment;
        let set = |attribute, value: *const c_void, size| {
            // SAFETY: the preference is alive; `value` points to `size` bytes.
            let result =
                unsafe { lt::set_matmul_pref_attribute(preference, attribute, value, size) };
            blas("cublasLtMatmulPreferenceSetAttribute", product, result)
        };
        let workspace = WORKSPACE as u64;
        set(P::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, address(&workspace), 8)?;
        for (attribute, alignment) in [
            (P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b),
            (P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a),
            (P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, d),
            (P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, d),
        ] {
            set(attribute, address(&alignment), 4)?;
        }
        let mut results =
            [MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit(); CANDIDATES];
        let mut count = 0;
        // SAFETY: all descriptors are alive; there is room for as many results as are asked for.
        let found = unsafe {
            let room = results.as_mut_ptr().cast();
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                matmul,
                first,
                second,
                c,
                c,
                preference,
                CANDIDATES as i32,
                room,
                &mut count,
            )
            .result()
        };
        // SAFETY: created above and not used any more.
        let destroyed = unsafe { lt::destroy_matmul_pref(preference) };
        blas("cublasLtMatmulPreferenceDestroy", product, destroyed)?;
        blas("cublasLtMatmulAlgoGetHeuristic", product, found)?;
        // SAFETY: the library filled in the first `count`.
        let found =
            results.iter().take(count as usize).map(|result| unsafe { result.assume_init() });
        let usable = |result: &sys::cublasLtMatmulHeuristicResult_t| {
            result.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS
        };
        Ok(found.filter(usable).map(|result| result.algo).collect())
    }
}
