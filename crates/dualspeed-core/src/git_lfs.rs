//! What git-lfs leaves in the place of a large file that was not fetched: three lines of text.

/// What to do about such a file; errors append it to the file's name.
pub const ADVICE: &str = "this is the pointer that git-lfs leaves, not the file itself; fetch that with `git lfs pull` in the \
                          clone, or download the file from the page it came from";

/// Whether a file that begins with these bytes is such a pointer.
pub fn is_pointer(head: &[u8]) -> bool {
    head.starts_with(b"version https://git-lfs.github.com/spec/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_and_others() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4cac19622fc3ada9c0fdeadb33f88f367b541f38b89102a3f1261ac81fd5bcb5\nsize 84977953\n";
        assert!(is_pointer(pointer) && is_pointer(&pointer[..64]));
        for other in
            [&b""[..], b"version 2", b"{\"version\": \"https://git-lfs.github.com/spec/v1\"}"]
        {
            assert!(!is_pointer(other));
        }
    }
}
