//! What was meant by a word that is not known: the known one that is nearest to it.

/// How much alike two words have to be, from 0 to 1, for one to be taken for a slip of the other.
const ALIKE: f64 = 0.65;

/// The known word that was most likely meant.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |known: &str| {
        let is_short_for = |long: &str, short: &str| {
            short.trim_start_matches('-').len() >= 3 && long.starts_with(short)
        };
        if is_short_for(known, word) || is_short_for(word, known) {
            return 1.0;
        }
        strsim::normalized_damerau_levenshtein(known, word)
            .max(strsim::jaro_winkler(known, word) - 0.1)
    };
    let alike = known.into_iter().map(|known| (likeness(known), known));
    let alike = alike.filter(|(likeness, known)| *likeness >= ALIKE && *known != word);
    alike.max_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, known)| known)
}

/// `; did you mean --memory?`, or nothing.
pub(crate) fn hint<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, known).map(|meant| format!("; did you mean {meant}?")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_of_the_pen_are_understood_and_nothing_else_is() {
        let known = ["kernel", "initrd", "memory", "cpus", "timeout", "on-reboot", "read-only"];
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
        ] {
            assert_eq!(nearest(word, known), want, "{word}");
        }
    }
}
