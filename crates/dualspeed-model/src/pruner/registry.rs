//! Pruners by name.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use dualspeed_core::nearest;
use dualspeed_ops::Backend;

use super::guided::Guided;
use super::text_tower::TextTower;
use super::{
    AvgPool2d, CdPruner, Compat, Dart, DivPrune, FasterVlm, HoloV, NoPruning, OptionValue,
    PruMerge, PruneError, PruneSid, Pruner, PrunerSpec, PyramidDrop, RandomPruner, Trim,
    UniformPruner, VisPruner, VisionZip,
};
use crate::vision::features::{Needs, TEXT};

/// Makes a pruner from its specification.
pub type PrunerFactory<B> =
    Arc<dyn Fn(&PrunerSpec) -> Result<Box<dyn Pruner<B>>, PruneError> + Send + Sync>;

/// What a pruner takes, for people who choose one.
#[derive(Clone, Debug)]
pub struct PrunerInfo {
    /// Name in the registry.
    pub name: String,
    /// Options of its own, sorted.
    pub options: Vec<String>,
    /// Features that it reads beyond hidden states and projected tokens.
    pub needs: Needs,
    /// Why there is no `compat = "official"`; `None` where there is.
    pub no_official: Option<&'static str>,
}

/// Makes the text tower that text-guided pruners ask.
type TextTowerFactory<B> = Arc<dyn Fn() -> Result<Arc<dyn TextTower<B>>, PruneError> + Send + Sync>;

/// Factories by name. A value, not global state: add your own with [`Registry::with`].
#[derive(Clone)]
pub struct Registry<B: Backend> {
    factories: BTreeMap<String, PrunerFactory<B>>,
    text_tower: Option<TextTowerFactory<B>>,
}

impl<B: Backend> Default for Registry<B> {
    fn default() -> Self {
        Self::builtin()
    }
}

impl<B: Backend> fmt::Debug for Registry<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("names", &self.names()).finish()
    }
}

impl<B: Backend> Registry<B> {
    /// The pruners of this crate: one line each.
    pub fn builtin() -> Self {
        Self { factories: BTreeMap::new(), text_tower: None }
            .with("none", |spec| spec.expect_options(&[]).map(|()| Box::new(NoPruning) as _))
            .with("random", |spec| Ok(Box::new(RandomPruner::from_spec(spec)?)))
            .with("uniform", |spec| Ok(Box::new(UniformPruner::from_spec(spec)?)))
            .with("avgpool2d", |spec| spec.expect_options(&[]).map(|()| Box::new(AvgPool2d) as _))
            .with("divprune", |spec| Ok(Box::new(DivPrune::from_spec(spec)?)))
            .with("cdpruner", |spec| Ok(Box::new(CdPruner::from_spec(spec)?)))
            .with("fastervlm", |spec| Ok(Box::new(FasterVlm::from_spec(spec)?)))
            .with("vispruner", |spec| Ok(Box::new(VisPruner::from_spec(spec)?)))
            .with("visionzip", |spec| Ok(Box::new(VisionZip::from_spec(spec)?)))
            .with("prumerge", |spec| Ok(Box::new(PruMerge::from_spec(spec, false)?)))
            .with("prumerge+", |spec| Ok(Box::new(PruMerge::from_spec(spec, true)?)))
            .with("holov", |spec| Ok(Box::new(HoloV::from_spec(spec)?)))
            .with("dart", |spec| Ok(Box::new(Dart::from_spec(spec)?)))
            .with("trim", |spec| Ok(Box::new(Trim::from_spec(spec)?)))
            .with("prunesid", |spec| Ok(Box::new(PruneSid::from_spec(spec)?)))
            .with("pyramiddrop", |spec| Ok(Box::new(PyramidDrop::from_spec(spec)?)))
    }

    /// Adds or replaces a pruner.
    pub fn with(
        mut self,
        name: impl Into<String>,
        factory: impl Fn(&PrunerSpec) -> Result<Box<dyn Pruner<B>>, PruneError> + Send + Sync + 'static,
    ) -> Self {
        self.factories.insert(name.into(), Arc::new(factory));
        self
    }

    /// Says where text-guided pruners (those that need `text`) get their questions' vectors
    /// from; called when such a pruner is built.
    pub fn with_text_tower(
        mut self,
        tower: impl Fn() -> Result<Arc<dyn TextTower<B>>, PruneError> + Send + Sync + 'static,
    ) -> Self {
        self.text_tower = Some(Arc::new(tower));
        self
    }

    /// Known names, sorted.
    pub fn names(&self) -> Vec<String> {
        self.factories.keys().cloned().collect()
    }

    /// What the pruner of a name takes. A factory that refuses no unknown option shows none.
    ///
    /// # Errors
    /// [`PruneError::Unknown`] with the nearest known name, or what the factory says.
    pub fn info(&self, name: &str) -> Result<PrunerInfo, PruneError> {
        let spec = PrunerSpec::new(name);
        let factory = self.factory(&spec)?;
        // Factories know their options and refuse any other by naming them.
        let other = BTreeMap::from([(String::new(), OptionValue::Flag(true))]);
        let mut options = match factory(&PrunerSpec { options: other, ..spec.clone() }) {
            Err(PruneError::UnknownOption { known, .. }) => known,
            _ => Vec::new(),
        };
        options.sort();
        let no_official = match factory(&PrunerSpec { compat: Compat::Official, ..spec.clone() }) {
            Err(PruneError::NoOfficial { reason, .. }) => Some(reason),
            _ => None,
        };
        let needs = factory(&spec)?.needs();
        Ok(PrunerInfo { name: spec.name, options, needs, no_official })
    }

    fn factory(&self, spec: &PrunerSpec) -> Result<&PrunerFactory<B>, PruneError> {
        self.factories.get(&spec.name).ok_or_else(|| {
            let known = self.names();
            let nearest = nearest(&spec.name, known.iter().map(String::as_str));
            PruneError::Unknown { name: spec.name.clone(), nearest, known }
        })
    }

    /// Builds a pruner. A text-guided one asks the registry's text tower, where there is one; else the
    /// caller sets [`VisualTokens::text`](super::VisualTokens).
    ///
    /// # Errors
    /// [`PruneError::Unknown`] with the nearest known name, or what the factory says.
    pub fn build(&self, spec: &PrunerSpec) -> Result<Box<dyn Pruner<B>>, PruneError> {
        let pruner = self.factory(spec)?(spec)?;
        match &self.text_tower {
            Some(tower) if pruner.needs().has(TEXT) => Ok(Box::new(Guided::new(pruner, tower()?))),
            _ => Ok(pruner),
        }
    }
}
