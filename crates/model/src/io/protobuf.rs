//! Protobuf messages, written field by field: `key = field << 3 | kind`, then a varint (kind 0), eight bytes (1), a length and bytes (2) or
//! four bytes (5). Source: protobuf.dev, "Encoding".

/// A message being written; fields must come in the order they are to have.
#[derive(Clone, Debug, Default)]
pub struct Message(Vec<u8>);

impl Message {
    /// The bytes so far.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// An integer.
    #[must_use]
    pub fn varint(mut self, field: u64, value: u64) -> Self {
        self.raw_varint(field << 3);
        self.raw_varint(value);
        self
    }

    /// A double.
    #[must_use]
    pub fn double(mut self, field: u64, value: f64) -> Self {
        self.raw_varint(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// Bytes, a text or an inner message.
    #[must_use]
    pub fn bytes(mut self, field: u64, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.raw_varint(field << 3 | 2);
        self.raw_varint(value.len() as u64);
        self.0.extend(value);
        self
    }

    /// A float.
    #[must_use]
    pub fn float(mut self, field: u64, value: f32) -> Self {
        self.raw_varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
        self
    }
}

impl AsRef<[u8]> for Message {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of protobuf.dev: `150` in field 1, `testing` in field 2, and the first as a message in field 3.
    #[test]
    fn messages_of_the_documentation() {
        let number = Message::default().varint(1, 150);
        assert_eq!(number.as_bytes(), [0x08, 0x96, 0x01]);
        let text = Message::default().bytes(2, "testing");
        assert_eq!(text.as_bytes(), b"\x12\x07testing");
        assert_eq!(Message::default().bytes(3, &number).as_bytes(), [0x1a, 3, 0x08, 0x96, 0x01]);
    }
}
