//! "Did you mean": suggests the known word that is most similar to an unknown one.

/// The least similarity of a suggestion: from 0 to 1, and above 1 for a word that continues the other.
const MIN_SIMILARITY: f64 = 0.65;

/// The known word that is most similar.
pub(crate) fn closest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let similarity = |known: &str| {
        let is_prefix_of = |long: &str, short: &str| {
            short.trim_start_matches('-').len() >= 3 && long.starts_with(short)
        };
        if is_prefix_of(known, word) || is_prefix_of(word, known) {
            // Of several, the one that misses the fewest letters.
            let missing = known.len().abs_diff(word.len());
            return 2.0 - missing as f64 / 100.0;
        }
        // One wrong letter is more likely than three missing ones.
        if word.len() >= 3 && strsim::damerau_levenshtein(known, word) == 1 {
            return 0.95;
        }
        strsim::normalized_damerau_levenshtein(known, word)
            .max(strsim::jaro_winkler(known, word) - 0.1)
    };
    let rated = known.into_iter().map(|known| (similarity(known), known));
    let is_empty = word.trim_start_matches('-').is_empty();
    let similar = rated
        .filter(|(similarity, known)| *similarity >= MIN_SIMILARITY && *known != word && !is_empty);
    similar.max_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, known)| known)
}

/// `; did you mean --memory?`, or an empty text.
pub(crate) fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    closest(word, known).map(|meant| format!("; did you mean {meant}?")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closest_prefers_the_shorter_continuation() {
        let known = ["flows", "flows-per-second", "connecting"];
        assert_eq!(closest("flow", known), Some("flows"));
        assert_eq!(closest("connect", known), Some("connecting"));
    }

    #[test]
    fn closest_finds_misspellings_only() {
        let known =
            ["kernel", "initrd", "memory", "cpus", "timeout", "on-reboot", "read-only", "--gc"];
        for (word, want) in [
            ("memry", Some("memory")),
            ("mem", Some("memory")),
            ("ckpus", Some("cpus")),
            ("cpu", Some("cpus")),
            ("kernle", Some("kernel")),
            ("on_reboot", Some("on-reboot")),
            ("readonly", Some("read-only")),
            ("initramfs", Some("initrd")),
            ("colour", None),
            ("", None),
            ("x", None),
            ("--", None),
        ] {
            assert_eq!(closest(word, known), want, "{word}");
        }
    }
}
