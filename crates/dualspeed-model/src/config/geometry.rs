//! The sizes of a vision tower that the rest of a model goes by.

/// What a vision tower fixes for the rest of the model, and what it costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VisionGeometry {
    /// Side of the square input, in pixels.
    pub image_size: usize,
    /// Patches along one side.
    pub grid: usize,
    /// Visual tokens per image before pruning: the patches, and a class token if there is one and it is passed on.
    pub num_tokens: usize,
    /// Width of the features.
    pub hidden_size: usize,
    /// What is taken off pixels between 0 and 1, and what they are then divided by, for red, green and blue; `None` is CLIP's.
    pub normalisation: Option<[[f32; 3]; 2]>,
    /// Numbers in the tower's parameters.
    pub num_parameters: u64,
    /// Numbers held at once at the widest place, per image.
    pub working_set: usize,
}
