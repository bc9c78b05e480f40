//! Kernels of our own: compiled once per device by NVRTC, kept on disk, launched on our stream.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::{CString, c_char, c_void};
use std::fs;
use std::path::PathBuf;
use std::ptr::null_mut;
use std::thread::JoinHandle;

use cudarc::driver::sys as driver;
use cudarc::nvrtc::{result as nvrtc, sys as nvrtc_sys};

use super::cache::{cache_file, digest, write_cache};
use super::driver::{check, compute_capability};
use super::error::CudaError;
use super::sources::Source;

/// How a kernel is started.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    pub(super) blocks: [usize; 3],
    pub(super) threads: usize,
    /// Dynamic shared memory, bytes.
    pub(super) shared: usize,
}

impl Grid {
    pub(super) fn new(blocks: usize, threads: usize) -> Self {
        Self { blocks: [blocks, 1, 1], threads, shared: 0 }
    }
}

/// One argument of a kernel.
#[derive(Clone, Debug)]
pub(super) enum Arg {
    /// A device address, 0 for a null pointer.
    Address(u64),
    /// `int`
    Int(usize),
    /// `long long`
    Long(usize),
    /// `float`
    Float(f64),
    /// A structure by value, in units of eight bytes.
    Struct(Vec<u64>),
}

impl Arg {
    /// Appends the value as it lies in memory, little-endian.
    fn push(&self, words: &mut Vec<u64>) {
        match self {
            Self::Address(address) => words.push(*address),
            Self::Int(value) => words.push(u64::from(*value as u32)),
            Self::Long(value) => words.push(*value as u64),
            Self::Float(value) => words.push(u64::from((*value as f32).to_bits())),
            Self::Struct(value) => words.extend(value),
        }
    }
}

/// Modules that are being compiled ahead of their first use.
type Ahead = HashMap<(&'static str, String), JoinHandle<Result<Vec<u8>, CudaError>>>;

/// Compiled modules of one device.
pub(super) struct Kernels {
    arch: String,
    modules: HashMap<(&'static str, String), driver::CUmodule>,
    functions: HashMap<(&'static str, String, String), driver::CUfunction>,
    constants: HashMap<(&'static str, String), [i32; 12]>,
    ahead: Ahead,
}

impl Kernels {
    pub(super) fn new(device: usize) -> Result<Self, CudaError> {
        let (major, minor) = compute_capability(device)?;
        // The instructions of Hopper's tensor cores exist under the "a" target only.
        let arch = match (major, minor) {
            (9, 0) => "sm_90a".to_string(),
            (major, minor) => format!("sm_{major}{minor}"),
        };
        Ok(Self {
            arch,
            modules: HashMap::new(),
            functions: HashMap::new(),
            constants: HashMap::new(),
            ahead: HashMap::new(),
        })
    }

    /// What kernels are compiled for.
    pub(super) fn arch(&self) -> &str {
        &self.arch
    }

    /// Starts compiling modules that a training step will want, side by side: the first step then waits for the slowest
    /// of them, not for their sum. Those that are on disk cost nothing.
    pub(super) fn compile_ahead(&mut self, modules: Vec<(&'static Source, String)>) {
        for (source, defines) in modules {
            let (arch, options) = (self.arch.clone(), defines.clone());
            let job = move || cubin(source, &options, &arch);
            let thread = std::thread::Builder::new().name(format!("nvrtc {}", source.name));
            // Without a thread it is compiled when it is wanted.
            if let Ok(handle) = thread.spawn(job) {
                self.ahead.insert((source.name, defines), handle);
            }
        }
    }

    fn module(&mut self, source: &Source, defines: &str) -> Result<driver::CUmodule, CudaError> {
        let key = (source.name, defines.to_string());
        if let Some(module) = self.modules.get(&key) {
            return Ok(*module);
        }
        let image = match self.ahead.remove(&key).map(JoinHandle::join) {
            Some(Ok(image)) => image?,
            _ => cubin(source, defines, &self.arch)?,
        };
        let mut module = null_mut();
        // SAFETY: the image is a whole cubin; the context is current.
        let code = unsafe { driver::cuModuleLoadData(&mut module, image.as_ptr().cast()) };
        check("cuModuleLoadData", code)?;
        self.modules.insert(key, module);
        Ok(module)
    }

    /// Twelve integers that a module defines: sizes that the host has to know.
    pub(super) fn constant(
        &mut self,
        source: &Source,
        defines: &str,
        name: &str,
    ) -> Result<[i32; 12], CudaError> {
        let key = (source.name, defines.to_string());
        if let Some(value) = self.constants.get(&key) {
            return Ok(*value);
        }
        let module = self.module(source, defines)?;
        let entry = CString::new(name).unwrap_or_default();
        let (mut address, mut bytes, mut value) = (0, 0, [0_i32; 12]);
        // SAFETY: the pointers are to locals; the copy is no longer than the array or the constant.
        unsafe {
            let code =
                driver::cuModuleGetGlobal_v2(&mut address, &mut bytes, module, entry.as_ptr());
            check("cuModuleGetGlobal", code)?;
            let bytes = bytes.min(size_of_val(&value));
            let code = driver::cuMemcpyDtoH_v2(value.as_mut_ptr().cast(), address, bytes);
            check("cuMemcpyDtoH", code)?;
        }
        self.constants.insert(key, value);
        Ok(value)
    }

    fn function(
        &mut self,
        source: &Source,
        defines: &str,
        name: &str,
    ) -> Result<driver::CUfunction, CudaError> {
        let key = (source.name, defines.to_string(), name.to_string());
        if let Some(function) = self.functions.get(&key) {
            return Ok(*function);
        }
        let module = self.module(source, defines)?;
        let entry = CString::new(name).unwrap_or_default();
        let mut function = null_mut();
        // SAFETY: the module is loaded and never unloaded.
        let code = unsafe { driver::cuModuleGetFunction(&mut function, module, entry.as_ptr()) };
        check("cuModuleGetFunction", code)?;
        self.functions.insert(key, function);
        Ok(function)
    }

    /// Queues one kernel on `stream`; `defines` are options of the compiler, separated by blanks.
    pub(super) fn launch(
        &mut self,
        source: &Source,
        defines: &str,
        name: &str,
        grid: Grid,
        args: &[Arg],
        stream: driver::CUstream,
    ) -> Result<(), CudaError> {
        let function = self.function(source, defines, name)?;
        if grid.shared > 48 << 10 {
            type F = driver::CUfunction_attribute;
            let attribute = F::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function belongs to a loaded module.
            let code =
                unsafe { driver::cuFuncSetAttribute(function, attribute, grid.shared as i32) };
            check("cuFuncSetAttribute", code)?;
        }
        let (mut words, mut starts) = (Vec::with_capacity(64), Vec::with_capacity(args.len()));
        for arg in args {
            starts.push(words.len());
            arg.push(&mut words);
        }
        let mut pointers: Vec<*mut c_void> =
            starts.iter().map(|start| words[*start..].as_ptr().cast_mut().cast()).collect();
        let [x, y, z] = grid.blocks.map(|blocks| blocks as u32);
        // SAFETY: the callers pass the arguments that the head comment of the source names, with addresses of operands
        // that are alive; the driver copies the values before it returns.
        let code = unsafe {
            driver::cuLaunchKernel(
                function,
                x,
                y,
                z,
                grid.threads as u32,
                1,
                1,
                grid.shared as u32,
                stream,
                pointers.as_mut_ptr(),
                null_mut(),
            )
        };
        check("cuLaunchKernel", code)
    }
}

/// The machine code of a source, from the disk where it was compiled before.
fn cubin(source: &Source, defines: &str, arch: &str) -> Result<Vec<u8>, CudaError> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the pointers are to locals.
    unsafe { nvrtc_sys::nvrtcVersion(&mut major, &mut minor) };
    let digest = digest(&[source.text, defines, arch, &format!("{major}.{minor}")]);
    let file = cache_file(&format!("{}-{arch}-{digest}.cubin", source.name));
    if let Some(image) = file.as_ref().and_then(|file| fs::read(file).ok())
        && !image.is_empty()
    {
        return Ok(image);
    }
    let image = compile(source, defines, arch)?;
    if let Some(file) = file {
        write_cache(&file, &image);
    }
    Ok(image)
}

fn compile(source: &Source, defines: &str, arch: &str) -> Result<Vec<u8>, CudaError> {
    let failed = |log: String| CudaError::Compile {
        kernel: format!("{} {defines}", source.name),
        arch: arch.to_string(),
        log,
    };
    let text = CString::new(source.text).map_err(|error| failed(error.to_string()))?;
    let program = nvrtc::create_program(&text, None).map_err(|error| failed(error.to_string()))?;
    let mut options = vec![format!("--gpu-architecture={arch}"), "--std=c++17".to_string()];
    options.extend(defines.split_whitespace().map(str::to_string));
    options.extend(include_dir().map(|dir| format!("--include-path={}", dir.display())));
    // SAFETY: the program is alive until it is destroyed below; the buffer has the size that NVRTC asks for.
    let image = unsafe {
        let compiled = nvrtc::compile_program(program, &options);
        if let Err(error) = compiled {
            let log = nvrtc::get_program_log(program).unwrap_or_default();
            let log: Vec<u8> = log.iter().map(|c| *c as u8).filter(|c| *c != 0).collect();
            return Err(failed(format!("{error}\n{}", String::from_utf8_lossy(&log))));
        }
        let mut size = 0;
        let size_known = nvrtc_sys::nvrtcGetCUBINSize(program, &mut size).result();
        let mut image = vec![0_u8; size];
        let read = size_known.and_then(|()| {
            nvrtc_sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast::<c_char>()).result()
        });
        read.and_then(|()| nvrtc::destroy_program(program))
            .map_err(|error| failed(error.to_string()))?;
        image
    };
    Ok(image)
}

/// Headers of the toolkit, where they are installed.
fn include_dir() -> Option<PathBuf> {
    let root =
        std::env::var_os("CUDA_PATH").map_or_else(|| "/usr/local/cuda".into(), PathBuf::from);
    Some(root.join("include")).filter(|dir| dir.is_dir())
}
