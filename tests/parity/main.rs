//! Parity with transformers and peft on tiny random models that those libraries saved, and errors on files that are
//! damaged. `scripts/fixtures/parity.py` makes the fixtures; `fixtures/versions.json` says with which versions.

mod adapters;
mod anyres;
mod clip;
mod commands;
mod damaged;
mod efficientnet;
mod gguf;
mod llama;
mod llava;
mod small;
mod support;
mod templates;
mod training;
