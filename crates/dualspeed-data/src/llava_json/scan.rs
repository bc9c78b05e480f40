//! Where records lie in a file, found without parsing them: of an array its elements, else one record a line.

use memchr::{memchr, memchr_iter, memchr2};

/// Where a record lies in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Its first byte.
    pub offset: u64,
    /// Its bytes.
    pub length: usize,
    /// Line of its first byte, from 1.
    pub line: usize,
    /// Column of its first byte, from 1.
    pub column: usize,
}

/// What is wrong with a file as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ScanError {
    pub line: usize,
    pub column: usize,
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but white space so far.
    Start,
    /// An array: a record or the end may follow (`true`: only a record, after a comma).
    Before(bool),
    /// Within a record of an array.
    Within,
    /// Within text of that record.
    Text,
    /// After a backslash in it.
    Escape,
    /// A record of an array is over.
    After,
    /// The array is over.
    End,
    /// One record a line.
    Lines,
}

/// Finds records in a file that comes piece by piece.
#[derive(Debug)]
pub(super) struct Scanner {
    state: State,
    /// Open brackets of the current record: what closes them.
    open: Vec<u8>,
    /// First byte of the current record.
    start: Option<Span>,
    /// Bytes read.
    offset: u64,
    line: usize,
    /// Offset of the first byte of the current line.
    line_start: u64,
}

impl Scanner {
    pub fn new() -> Self {
        let state = State::Start;
        Self { state, open: Vec::new(), start: None, offset: 0, line: 1, line_start: 0 }
    }

    /// First byte of what has not been handed out yet.
    pub fn unfinished(&self) -> u64 {
        self.start.map_or(self.offset, |start| start.offset)
    }

    /// Whether the file is one record a line.
    pub fn is_lines(&self) -> bool {
        self.state == State::Lines
    }

    /// Reads on; adds the records that end here.
    pub fn feed(&mut self, bytes: &[u8], spans: &mut Vec<Span>) -> Result<(), ScanError> {
        let mut at = 0;
        while at < bytes.len() {
            let byte = bytes[at];
            match self.state {
                State::Lines => {
                    at = self.line_end(bytes, at, spans);
                    continue;
                }
                State::Text => {
                    at = self.text_end(bytes, at);
                    continue;
                }
                State::Escape => self.state = State::Text,
                State::Start if byte == b'[' => self.state = State::Before(false),
                State::Start if !byte.is_ascii_whitespace() => {
                    self.state = State::Lines;
                    continue;
                }
                State::Before(false) if byte == b']' => self.state = State::End,
                State::Before(_) if !byte.is_ascii_whitespace() => {
                    if matches!(byte, b',' | b']' | b'}') {
                        return Err(self.error(at, "a record was expected here"));
                    }
                    self.start = Some(self.span(at));
                    self.state = State::Within;
                    continue;
                }
                // The byte that ended the record is looked at again.
                State::Within => {
                    let again = self.within(at, byte, spans)?;
                    if again {
                        continue;
                    }
                }
                State::After if byte == b',' => self.state = State::Before(true),
                State::After if byte == b']' => self.state = State::End,
                State::After | State::End if !byte.is_ascii_whitespace() => {
                    let reason = match self.state {
                        State::After => "a comma or the end of the array was expected here",
                        _ => "the array is over, but the file goes on",
                    };
                    return Err(self.error(at, reason));
                }
                _ => {}
            }
            if byte == b'\n' {
                self.new_line(at);
            }
            at += 1;
        }
        self.offset += bytes.len() as u64;
        Ok(())
    }

    /// The file is over; adds a last line that no newline ends.
    pub fn finish(&mut self, spans: &mut Vec<Span>) -> Result<(), ScanError> {
        match self.state {
            State::Start | State::End => Ok(()),
            State::Lines => {
                self.close(0, spans);
                Ok(())
            }
            _ => Err(self.error(0, "the file ends within the array of records; it is incomplete")),
        }
    }

    /// A byte of a record outside of text; whether it is to be looked at again, as it is no longer part of the record.
    fn within(&mut self, at: usize, byte: u8, spans: &mut Vec<Span>) -> Result<bool, ScanError> {
        match byte {
            b'"' => self.state = State::Text,
            b'{' => self.open.push(b'}'),
            b'[' => self.open.push(b']'),
            b'}' | b']' => match self.open.pop() {
                Some(expected) if expected == byte => {
                    if self.open.is_empty() {
                        self.close(at + 1, spans);
                        self.state = State::After;
                    }
                }
                // A number or word before the end of the array.
                None if byte == b']' => {
                    self.close(at, spans);
                    self.state = State::After;
                    return Ok(true);
                }
                expected => {
                    let (expected, found) = (expected.map(char::from), char::from(byte));
                    let problem = match expected {
                        Some(expected) => format!("{expected:?} is missing before {found:?}"),
                        None => format!("{found:?} closes what was not opened"),
                    };
                    let reason = format!("{problem}; the records from here on were not read");
                    return Err(self.error(at, &reason));
                }
            },
            _ if self.open.is_empty() && (byte == b',' || byte.is_ascii_whitespace()) => {
                self.close(at, spans);
                self.state = State::After;
                return Ok(true);
            }
            _ => {}
        }
        Ok(false)
    }

    /// Skips text up to and including what ends it; the next byte to look at.
    fn text_end(&mut self, bytes: &[u8], at: usize) -> usize {
        let Some(found) = memchr2(b'"', b'\\', &bytes[at..]) else {
            self.count_lines(bytes, at, bytes.len());
            return bytes.len();
        };
        self.count_lines(bytes, at, at + found);
        if bytes[at + found] == b'"' {
            self.state = State::Within;
        } else if at + found + 1 == bytes.len() {
            // What is escaped comes with the next piece.
            self.state = State::Escape;
            return bytes.len();
        } else {
            return at + found + 2;
        }
        at + found + 1
    }

    fn line_end(&mut self, bytes: &[u8], at: usize, spans: &mut Vec<Span>) -> usize {
        if self.start.is_none() && !bytes[at].is_ascii_whitespace() {
            self.start = Some(self.span(at));
        }
        if self.start.is_none() && bytes[at] != b'\n' {
            return at + 1;
        }
        match memchr(b'\n', &bytes[at..]) {
            None => bytes.len(),
            Some(found) => {
                self.close(at + found, spans);
                self.new_line(at + found);
                at + found + 1
            }
        }
    }

    /// Ends the current record before byte `at` of the piece.
    fn close(&mut self, at: usize, spans: &mut Vec<Span>) {
        if let Some(start) = self.start.take() {
            let length = (self.offset + at as u64 - start.offset) as usize;
            spans.push(Span { length, ..start });
        }
    }

    fn span(&self, at: usize) -> Span {
        let offset = self.offset + at as u64;
        let column = (offset - self.line_start) as usize + 1;
        Span { offset, length: 0, line: self.line, column }
    }

    fn error(&self, at: usize, reason: &str) -> ScanError {
        let Span { line, column, .. } = self.span(at);
        ScanError { line, column, reason: reason.to_owned() }
    }

    fn new_line(&mut self, at: usize) {
        self.line += 1;
        self.line_start = self.offset + at as u64 + 1;
    }

    fn count_lines(&mut self, bytes: &[u8], from: usize, to: usize) {
        for newline in memchr_iter(b'\n', &bytes[from..to]) {
            self.new_line(from + newline);
        }
    }
}
