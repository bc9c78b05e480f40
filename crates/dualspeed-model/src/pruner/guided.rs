//! A text-guided pruner with the tower that reads its questions.

use std::sync::Arc;

use dualspeed_ops::Backend;

use super::text_tower::TextTower;
use super::{Kept, LayerDrop, PruneContext, PruneError, PruneStage, Pruner, Scope, VisualTokens};
use crate::vision::features::{Needs, TEXT};

/// Fills [`VisualTokens::text`] from the context's prompts, then asks the pruner.
#[derive(Debug)]
pub(super) struct Guided<B: Backend> {
    pruner: Box<dyn Pruner<B>>,
    tower: Arc<dyn TextTower<B>>,
}

impl<B: Backend> Guided<B> {
    pub(super) fn new(pruner: Box<dyn Pruner<B>>, tower: Arc<dyn TextTower<B>>) -> Self {
        Self { pruner, tower }
    }
}

impl<B: Backend> Pruner<B> for Guided<B> {
    fn name(&self) -> &str {
        self.pruner.name()
    }

    fn needs(&self) -> Needs {
        self.pruner.needs().without(TEXT)
    }

    fn stage(&self) -> PruneStage {
        self.pruner.stage()
    }

    fn scope(&self) -> Scope {
        self.pruner.scope()
    }

    fn keeps_all(&self) -> bool {
        self.pruner.keeps_all()
    }

    fn layer_drop(&self, keep: usize) -> Option<Arc<dyn LayerDrop>> {
        self.pruner.layer_drop(keep)
    }

    fn prune(
        &self,
        visual: &VisualTokens<B>,
        keep: usize,
        ctx: &PruneContext,
    ) -> Result<Kept<B>, PruneError> {
        let mut visual = visual.clone();
        if visual.text.is_none() {
            // Without prompts every question is empty, which a tower may still make something of.
            let prompts = match ctx.prompts.is_empty() {
                true => vec![String::new(); ctx.images.len()],
                false => ctx.prompts.clone(),
            };
            visual.text = Some(self.tower.embed(&prompts)?);
        }
        self.pruner.prune(&visual, keep, ctx)
    }
}
