#![no_main]

#[path = "../subject.rs"]
mod subject;

use std::sync::LazyLock;

use dualspeed_data as data;
use dualspeed_model as model;
use libfuzzer_sys::fuzz_target;
use subject::Subject;

static SUBJECT: LazyLock<Subject> = LazyLock::new(|| {
    let name = format!("dualspeed-fuzz-index-{}", std::process::id());
    Subject::new("index", &std::env::temp_dir().join(name)).unwrap()
});

fuzz_target!(|input: &[u8]| {
    SUBJECT.run(input);
});
