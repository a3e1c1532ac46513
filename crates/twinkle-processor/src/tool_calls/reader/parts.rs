//! What is read out of a text.

/// A part of what a model writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallPart {
    /// What belongs to no call.
    Text(String),
    /// A call of this function begins.
    Name(String),
    /// What the call's arguments go on with. Together they are JSON, if the model writes JSON and ends it.
    Arguments(String),
    /// The call is over.
    End {
        /// Its text, with everything around name and arguments.
        written: String,
    },
}

/// Parts in order, with neighbours of one kind joined.
#[derive(Clone, Debug, Default)]
pub(super) struct Parts(pub(super) Vec<CallPart>);

impl Parts {
    pub(super) fn text(&mut self, text: &str) {
        match self.0.last_mut() {
            _ if text.is_empty() => {}
            Some(CallPart::Text(last)) => last.push_str(text),
            _ => self.0.push(CallPart::Text(text.to_owned())),
        }
    }

    pub(super) fn name(&mut self, name: &str) {
        self.0.push(CallPart::Name(name.to_owned()));
    }

    pub(super) fn arguments(&mut self, json: &str) {
        match self.0.last_mut() {
            _ if json.is_empty() => {}
            Some(CallPart::Arguments(last)) => last.push_str(json),
            _ => self.0.push(CallPart::Arguments(json.to_owned())),
        }
    }

    pub(super) fn end(&mut self, written: String) {
        self.0.push(CallPart::End { written });
    }
}

/// How far one form of a call was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// To the end of the text; the call goes on.
    On,
    /// To the call's end; so many bytes of the text follow it.
    Whole {
        /// Bytes behind the call.
        rest: usize,
    },
    /// To where it turned out to be no call; so many bytes of the text were read before.
    Nothing {
        /// Bytes that begin no call.
        read: usize,
    },
}
