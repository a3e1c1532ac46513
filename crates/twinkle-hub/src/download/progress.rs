//! How far a download or a conversion is: bars on a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tracing::info;

/// The progress of one piece of work on a model.
pub(crate) struct Progress {
    shared: Arc<Shared>,
}

struct Shared {
    doing: &'static str,
    model: String,
    bars: Option<MultiProgress>,
    total: u64,
    done: AtomicU64,
    /// The last tenth that was logged.
    tenth: AtomicU64,
}

/// The progress of one of its files.
pub(crate) struct FileProgress {
    shared: Arc<Shared>,
    bar: ProgressBar,
    position: AtomicU64,
}

impl Progress {
    /// Begins to do something with `files` files of `total` bytes.
    pub(crate) fn new(doing: &'static str, model: &str, files: usize, total: u64) -> Self {
        info!(model, files, mebibytes = total >> 20, "{doing}");
        let bars = std::io::stderr().is_terminal().then(MultiProgress::new);
        let (done, tenth) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { shared: Arc::new(Shared { doing, model: model.to_owned(), bars, total, done, tenth }) }
    }

    /// A file of this size.
    pub(crate) fn file(&self, name: &str, size: u64) -> FileProgress {
        let bar = match &self.shared.bars {
            Some(bars) => bars.add(ProgressBar::new(size).with_style(style()).with_message(name.to_owned())),
            None => ProgressBar::hidden(),
        };
        FileProgress { shared: Arc::clone(&self.shared), bar, position: AtomicU64::new(0) }
    }
}

impl FileProgress {
    /// So many bytes are there. It can be fewer than before: a broken file begins anew.
    pub(crate) fn at(&self, position: u64) {
        self.bar.set_position(position);
        let before = self.position.swap(position, Ordering::Relaxed);
        let shared = &self.shared;
        let done = if position >= before {
            shared.done.fetch_add(position - before, Ordering::Relaxed) + (position - before)
        } else {
            shared.done.fetch_sub(before - position, Ordering::Relaxed) - (before - position)
        };
        let Some(tenth) = (done * 10).checked_div(shared.total) else { return };
        if shared.bars.is_none() && shared.tenth.fetch_max(tenth, Ordering::Relaxed) < tenth {
            info!(model = shared.model, percent = tenth * 10, mebibytes = done >> 20, "{}", shared.doing);
        }
    }
}

impl Drop for FileProgress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn style() -> ProgressStyle {
    let template = "{msg:30!} {bar:30} {bytes:>10}/{total_bytes:10} {bytes_per_sec:>12} {eta}";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
