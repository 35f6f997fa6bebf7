//! Which partition an output record goes to.
//!
//! A keyed record goes where the Java client's default partitioner would put it, so that coproc's output is
//! co-partitioned with what everybody else produces.

use serde::{Deserialize, Serialize};

/// How the partition of an output is chosen, where the topic is not a materialized one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Partitioner {
    /// By the key's murmur2; a record without a key goes to `source partition % count`.
    #[default]
    Key,
    /// Always to `source partition % count`.
    Source,
}

impl Partitioner {
    /// The partition of a record with this key that stems from `source`, in a topic of `count` partitions.
    pub fn choose(self, key: Option<&[u8]>, source: u32, count: u32) -> u32 {
        let count = count.max(1);
        match (self, key) {
            (Self::Key, Some(key)) => (murmur2(key) & 0x7fff_ffff) % count,
            _ => source % count,
        }
    }
}

/// The 32-bit murmur2 of Kafka's Java client, seed 0x9747b28c.
///
/// Source: `org.apache.kafka.common.utils.Utils.murmur2`.
pub fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ data.len() as u32;
    let chunks = data.chunks_exact(4);
    let tail = chunks.remainder();
    for chunk in chunks {
        let mut k = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !tail.is_empty() {
        for (i, &byte) in tail.iter().enumerate() {
            hash ^= u32::from(byte) << (8 * i);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ hash >> 15
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From `UtilsTest.testMurmur2` of Apache Kafka.
    #[test]
    fn agrees_with_the_java_client() {
        let cases: [(&str, i32); 6] = [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ];
        for (text, hash) in cases {
            assert_eq!(murmur2(text.as_bytes()) as i32, hash, "{text}");
        }
    }

    #[test]
    fn keyed_by_key_and_unkeyed_by_source() {
        assert_eq!(
            Partitioner::Key.choose(Some(b"foobar"), 5, 8),
            (-790_332_482i32).cast_unsigned() % (1 << 31) % 8
        );
        assert_eq!(Partitioner::Key.choose(None, 5, 3), 2);
        assert_eq!(Partitioner::Source.choose(Some(b"foobar"), 5, 3), 2);
        assert_eq!(Partitioner::Key.choose(Some(b""), 5, 1), 0);
    }
}
