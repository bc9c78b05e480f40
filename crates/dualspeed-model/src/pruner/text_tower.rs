//! Questions in the space that vision towers share with text, for text-guided pruners.

use std::fmt::Debug;

use burn::tensor::{Int, Tensor, TensorData};
use dualspeed_ops::Backend;

use super::PruneError;

/// Questions as unit vectors, one or more for each.
#[derive(Clone, Debug)]
pub struct TextFeatures<B: Backend> {
    /// `[questions, m, p]`, unit vectors; zeros after each question's own number.
    pub vectors: Tensor<B, 3>,
    /// How many of the `m` vectors each question has, 1 or more.
    pub lengths: Vec<usize>,
    /// Whether a patch that shows what the text names has the *lower* cosine with it. That is so in
    /// CLIP, whose patches were never trained against text, and why CDPruner and TRIM negate.
    pub inverted: bool,
}

impl<B: Backend> TextFeatures<B> {
    /// The rows of some of the questions, repeated or reordered.
    pub fn select(&self, questions: &[usize]) -> Self {
        let ids: Vec<i64> = questions.iter().map(|question| *question as i64).collect();
        let ids = TensorData::new(ids, [questions.len()]);
        let ids = Tensor::<B, 1, Int>::from_data(ids, &self.vectors.device());
        Self {
            vectors: self.vectors.clone().select(0, ids),
            lengths: questions.iter().map(|question| self.lengths[*question]).collect(),
            inverted: self.inverted,
        }
    }

    /// How much each patch shows of its question: the mean cosine over the question's vectors,
    /// negated where the space is [inverted](TextFeatures::inverted).
    ///
    /// # Shapes
    /// `patch_text` `[questions, n, p]`, unit vectors -> `[questions, n]`.
    pub fn relevance(&self, patch_text: Tensor<B, 3>) -> Tensor<B, 2> {
        let [questions, n, _] = patch_text.dims();
        let sign = if self.inverted { -1.0 } else { 1.0 };
        let shares: Vec<f32> = self.lengths.iter().map(|m| sign / (*m).max(1) as f32).collect();
        let shares = TensorData::new(shares, [questions, 1]);
        let shares = Tensor::<B, 2>::from_data(shares, &patch_text.device());
        let cosines = patch_text.matmul(self.vectors.clone().swap_dims(1, 2)); // [questions, n, m]
        cosines.sum_dim(2).reshape([questions, n]) * shares
    }
}

/// Whatever puts questions into the space of the vision tower's `patch_text` features.
pub trait TextTower<B: Backend>: Debug + Send + Sync {
    /// The questions' vectors; a long question may have several (CLIP: one per 77 tokens).
    ///
    /// # Errors
    /// [`PruneError::Text`] if a question cannot be embedded.
    fn embed(&self, questions: &[String]) -> Result<TextFeatures<B>, PruneError>;
}

/// A text tower that knows a list of names: a question's vectors are those of the names it mentions.
///
/// A question that mentions none gets the vectors of *all* names: it asks about the picture as a
/// whole, and patches that show anything nameable are what it needs.
#[derive(Clone, Debug)]
pub struct NameTower<B: Backend> {
    names: Vec<String>,
    vectors: Tensor<B, 2>,
}

impl<B: Backend> NameTower<B> {
    /// From names and their unit vectors `[names, p]`.
    ///
    /// # Errors
    /// [`PruneError::Text`] unless there is one vector for each of at least one name.
    pub fn new(
        names: impl IntoIterator<Item = impl Into<String>>,
        vectors: Tensor<B, 2>,
    ) -> Result<Self, PruneError> {
        let names: Vec<String> = names.into_iter().map(|name| words(&name.into())).collect();
        let rows = vectors.dims()[0];
        if names.is_empty() || rows != names.len() {
            let problem = format!("{} names but {rows} vectors", names.len());
            return Err(PruneError::Text { problem });
        }
        Ok(Self { names, vectors })
    }

    /// Indices of the names a question mentions as whole words; all of them if it mentions none.
    pub fn mentioned(&self, question: &str) -> Vec<usize> {
        let question = words(question);
        let there: Vec<usize> =
            (0..self.names.len()).filter(|i| question.contains(&self.names[*i])).collect();
        if there.is_empty() { (0..self.names.len()).collect() } else { there }
    }
}

/// Lower case, words apart by single blanks, blanks around.
fn words(text: &str) -> String {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.fold(" ".to_owned(), |text, word| text + word + " ")
}

impl<B: Backend> TextTower<B> for NameTower<B> {
    fn embed(&self, questions: &[String]) -> Result<TextFeatures<B>, PruneError> {
        let mentioned: Vec<Vec<usize>> = questions.iter().map(|q| self.mentioned(q)).collect();
        let longest = mentioned.iter().map(Vec::len).max().unwrap_or(0);
        let (mut ids, mut there) = (Vec::new(), Vec::new());
        for names in &mentioned {
            ids.extend((0..longest).map(|i| names.get(i).map_or(0, |name| *name as i64)));
            there.extend((0..longest).map(|i| if i < names.len() { 1f32 } else { 0.0 }));
        }
        let (count, device) = (questions.len(), self.vectors.device());
        let p = self.vectors.dims()[1];
        let ids = TensorData::new(ids, [count * longest]);
        let ids = Tensor::<B, 1, Int>::from_data(ids, &device);
        let there = TensorData::new(there, [count, longest, 1]);
        let there = Tensor::<B, 3>::from_data(there, &device);
        Ok(TextFeatures {
            vectors: self.vectors.clone().select(0, ids).reshape([count, longest, p]) * there,
            lengths: mentioned.iter().map(Vec::len).collect(),
            inverted: false,
        })
    }
}
