//! Reports: plots ([`plot`]), a self-contained HTML page ([`html`]), tables
//! ([`table`]), and pictures of the visual tokens a pruner keeps ([`strip`]).

pub mod html;
pub mod plot;
pub mod strip;
pub mod table;
