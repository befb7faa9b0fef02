//! What the writer publishes, each time after the kernel holds it.

use std::sync::Arc;

use namegate_engine::MapWriter;

use crate::{Enforcement, Enforcer, Figures, Programs, attachments::Attachments};

impl<K: MapWriter + Programs> Enforcer<K> {
    /// Publishes rules and endpoints where they are others than before. The kernel holds them: no reader is ahead of it.
    pub(crate) fn publish_policy(&mut self) {
        if self.engine.is_changing() {
            // The rest of the change is still to be written. It is published at the end.
            return;
        }
        let last = self.published.policy.load_full();
        let view = self.engine.policy_view(&last);
        if !view.is_like(&last) {
            for (address, who) in view.newly_trusted(&last) {
                let who = who.unwrap_or("unknown endpoint, named in the settings");
                tracing::info!(%address, who, "a new trusted resolver: its answers open addresses");
            }
            self.engine.has_shown(&view);
            self.published.publish(view);
        }
    }

    /// Publishes what has changed of the learned names. Their rows are written.
    pub(crate) fn publish_names(&mut self) {
        let changes = self.engine.take_name_changes();
        self.published.names.apply(changes, (self.clock)());
    }

    /// Publishes how far the kernel is.
    pub(crate) fn publish_enforcement(&mut self) -> Arc<Enforcement> {
        let Attachments { wanted, unowned, failed, healed, attached, .. } = &self.attachments;
        let is_whole = |interface: &u32| !failed.contains_key(interface) && self.engine.has_interface(*interface);
        let enforcement = Arc::new(Enforcement {
            unenforced: self.shortages.unenforced(),
            closed: self.shortages.closed.clone(),
            wanted: wanted.clone(),
            unowned: unowned.clone(),
            failed: failed.clone(),
            judged: attached.iter().copied().filter(is_whole).collect(),
            rowless: wanted.iter().copied().filter(|interface| !self.engine.has_interface(*interface)).collect(),
            selects_node: self.engine.node_id().is_some(),
            healed: *healed,
            divided: self.engine.divided(),
        });
        self.published.enforcement.store(Arc::clone(&enforcement));
        enforcement
    }

    /// Publishes how full everything is.
    pub(crate) fn publish_figures(&mut self) {
        self.figures_due = None;
        self.published.figures.store(Arc::new(Figures {
            rows: self.engine.row_counts(),
            refused: self.engine.refused(),
            refused_of_shares: self.engine.refused_of_shares(),
            writes_refused: self.shortages.writes,
        }));
    }
}
