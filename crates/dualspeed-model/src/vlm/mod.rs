//! The whole model: encode, choose visual tokens, lay out, decode.
//!
//! | module | concept |
//! |---|---|
//! | [`llava`] | [`Llava`]: its parts, and how it is built |
//! | [`mod@assemble`] | a new model from two halves |
//! | [`parts`] | towers and projectors of other crates |
//! | [`context`] | inputs, views, contexts, results |
//! | [`forward`] | the forward |
//! | [`generate`] | text about pictures |
//! | [`groups`] | groups of parameters: what is trained, and with which learning rate |
//! | [`memory`] | an estimate of a training step, and what is recomputed to fit |

pub mod assemble;
pub mod context;
pub mod forward;
pub mod generate;
pub mod groups;
pub mod llava;
pub mod memory;
pub mod parts;

pub use assemble::assemble;
pub use context::{Forward, Inputs, StepContext, View, Wanted};
pub use groups::{ParamGroup, Trainable, require_dtype};
pub use llava::Llava;
pub use memory::Recompute;
pub use parts::Parts;
