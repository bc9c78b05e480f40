//! Characters for private use that mark places in text while it is written out. No conversation may have them.

/// Stand before and after what `{% generation %}` marks.
pub(super) const GENERATION: [char; 2] = ['\u{10ff00}', '\u{10ff01}'];

/// Breaks up what a conversation's text must not spell: special tokens and the image token. It is taken out again before the
/// text is tokenized.
pub(super) const GUARD: char = '\u{10ff02}';
