//! Where a walk through a module is: the path of a parameter as checkpoints and optimisers know it.

/// The names on the way to a parameter.
pub(crate) struct Walk {
    /// Each with the container it is a field of.
    stack: Vec<(String, String)>,
}

impl Walk {
    /// Begins at a named part of the model.
    pub fn new(root: &str) -> Self {
        Self { stack: vec![(root.to_owned(), String::new())] }
    }

    /// `ModuleVisitor::enter_module` and `ModuleMapper::enter_module`.
    pub fn enter(&mut self, name: &str, container: &str) {
        // An enum's variant is no place of its own: a checkpoint does not know that there are other kinds.
        let name = if container.starts_with("Enum:") { "" } else { name };
        self.stack.push((name.to_owned(), container.to_owned()));
    }

    /// `exit_module` of both.
    pub fn exit(&mut self) {
        self.stack.pop();
    }

    /// The path, dots between names.
    pub fn path(&self) -> String {
        let names = self.stack.iter().map(|(name, _)| name.as_str());
        names.filter(|name| !name.is_empty()).collect::<Vec<_>>().join(".")
    }

    /// Whether the parameter is a matrix that PyTorch keeps as `[out, in]`.
    pub fn is_turned(&self, rank: usize) -> bool {
        let container = self.stack.last().map_or("", |(_, container)| container.as_str());
        rank == 2 && matches!(container, "Struct:Linear" | "Struct:LoraPair")
    }
}
