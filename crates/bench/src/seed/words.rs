//! The words of the prompts. `benches/reads.py` searches for those with a name.

use super::random::{Random, Weights};

/// In about 40 % of all prompts.
pub(super) const COMMON_WORD: &str = "function";
/// In `plan::RARE_PROMPTS` prompts.
pub(super) const RARE_WORD: &str = "zanzibar";
/// Each in about a quarter of all prompts, independently.
const FREQUENT_WORDS: [&str; 2] = ["pipeline", "latency"];
/// A power of two: a frequent word is in every 16th phrase.
pub(super) const PHRASES: usize = 4_096;
const PHRASE_BYTES: usize = 28;

const VERBS: &str = "add build call change check clean close convert copy count create delete deploy describe \
    disable drop enable encode explain export fetch find fix format generate handle import improve index insert \
    inspect load lock log merge migrate move open parse print query read refactor remove rename render replace \
    retry return rewrite run send sort split start stop store test trace update use validate verify write";
const NOUNS: &str = "account adapter array backup batch body branch buffer cache call client column commit \
    config connection container context cookie counter cursor database date default dependency directory driver \
    endpoint entry error event example feature field file filter flag folder form gateway handler hash header \
    hook image index input interface invoice item job key label layout library limit line list listener lock \
    loop message method metric migration model module mutex namespace network node number object option order \
    output owner package page parser path payload permission plugin policy pool port price process profile \
    project prompt provider proxy queue range record region release report request response result retry role \
    route row schema scope script secret section selector sequence server service session setting shard signal \
    size slot snapshot socket source spool stack state statement step stream string struct suite table tag task \
    template tenant test thread timeout timer token trait transaction trigger type upload url user value variable \
    vector version view volume webhook widget window worker";
const FILLERS: &str = "the a to of in and is for it with that on this as be not but from when which should why \
    how what please now only after before every all into so then still there";

/// Phrases of five or more words each, from which the store makes the prompts.
pub(super) fn phrases(random: &mut Random) -> Vec<String> {
    let words = vocabulary(random);
    let weights = Weights::zipf(u64::try_from(words.len()).unwrap_or(u64::MAX));
    (0..PHRASES)
        .map(|number| {
            let mut phrase = match number % 16 {
                3 => FREQUENT_WORDS[0].to_owned(),
                7 => FREQUENT_WORDS[1].to_owned(),
                _ => String::new(),
            };
            while phrase.len() < PHRASE_BYTES {
                if !phrase.is_empty() {
                    phrase.push(' ');
                }
                phrase.push_str(words.get(weights.draw(random)).map_or("", String::as_str));
            }
            phrase
        })
        .collect()
}

/// About 8,000 words, the frequent ones of the language first: plain ones, and names as in programs.
fn vocabulary(random: &mut Random) -> Vec<String> {
    let nouns: Vec<&str> = NOUNS.split_whitespace().collect();
    let mut words: Vec<String> =
        FILLERS.split_whitespace().chain(VERBS.split_whitespace()).map(str::to_owned).collect();
    words.extend(nouns.iter().map(|noun| (*noun).to_owned()));
    let plain = words.len();
    for verb in VERBS.split_whitespace() {
        for noun in &nouns {
            let (initial, rest) = noun.split_at(1);
            words.push(format!("{verb}{}{rest}", initial.to_ascii_uppercase()));
        }
    }
    // The names of programs in random order, so that those of the first verb are not the frequent ones.
    for place in (plain + 1..words.len()).rev() {
        let other = plain + usize::try_from(random.below(as_u64(place - plain))).unwrap_or(0);
        words.swap(place, other);
    }
    words.truncate(8_000);
    words
}

fn as_u64(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phrases_have_neither_the_common_nor_the_rare_word() {
        let phrases = phrases(&mut Random::new(1));
        assert_eq!(phrases.len(), PHRASES);
        for phrase in &phrases {
            assert!((PHRASE_BYTES..80).contains(&phrase.len()), "{phrase}");
            assert!(!phrase.contains(COMMON_WORD) && !phrase.contains(RARE_WORD), "{phrase}");
            assert!(!phrase.contains('\''), "{phrase} would have to be escaped");
        }
        let with = |word| phrases.iter().filter(|phrase| phrase.contains(word)).count();
        assert_eq!(FREQUENT_WORDS.map(with), [PHRASES / 16; 2]);
    }
}
