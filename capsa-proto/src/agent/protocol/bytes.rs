//! Values in a payload: integers little-endian, byte strings with a length of 4 bytes before them.

use alloc::vec::Vec;

use super::message::MessageError;

/// Appends values to a payload.
#[derive(Debug, Default)]
pub struct FieldWriter(pub Vec<u8>);

impl FieldWriter {
    /// Appends a value.
    pub fn put(&mut self, value: &impl Field) {
        value.write(self);
    }
}

/// Takes values from a payload.
#[derive(Debug)]
pub struct FieldReader<'a>(pub &'a [u8]);

impl<'a> FieldReader<'a> {
    /// The next value.
    ///
    /// # Errors
    ///
    /// When the payload is too short or the value is invalid.
    pub fn take<T: Field>(&mut self) -> Result<T, MessageError> {
        T::read(self)
    }

    /// The next `length` bytes.
    ///
    /// # Errors
    ///
    /// When the payload is shorter.
    pub fn take_bytes(&mut self, length: usize) -> Result<&'a [u8], MessageError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(MessageError::TooShort)?;
        self.0 = rest;
        Ok(taken)
    }

    /// All bytes that are left.
    pub fn take_rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.0)
    }

    /// # Errors
    ///
    /// When bytes are left.
    pub fn finish(self) -> Result<(), MessageError> {
        if self.0.is_empty() { Ok(()) } else { Err(MessageError::TooLong) }
    }
}

/// A value that a payload can contain.
pub trait Field: Sized {
    /// Appends the value.
    fn write(&self, to: &mut FieldWriter);

    /// Takes the value.
    ///
    /// # Errors
    ///
    /// When the payload is too short or the value is invalid.
    fn read(from: &mut FieldReader<'_>) -> Result<Self, MessageError>;
}

macro_rules! integers {
    ($($integer:ty),*) => {$(
        impl Field for $integer {
            fn write(&self, to: &mut FieldWriter) {
                to.0.extend_from_slice(&self.to_le_bytes());
            }

            fn read(from: &mut FieldReader<'_>) -> Result<Self, MessageError> {
                let bytes = from.take_bytes(size_of::<Self>())?;
                Ok(Self::from_le_bytes(bytes.try_into().map_err(|_| MessageError::TooShort)?))
            }
        }
    )*};
}

integers!(u8, u16, u32, u64, i32, i64);

impl Field for bool {
    fn write(&self, to: &mut FieldWriter) {
        to.put(&u8::from(*self));
    }

    fn read(from: &mut FieldReader<'_>) -> Result<Self, MessageError> {
        match from.take::<u8>()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(MessageError::Value("bool", other.into())),
        }
    }
}

/// Bytes, such as a path of the guest, which need not be UTF-8.
impl Field for Vec<u8> {
    fn write(&self, to: &mut FieldWriter) {
        to.put(&(self.len() as u32));
        to.0.extend_from_slice(self);
    }

    fn read(from: &mut FieldReader<'_>) -> Result<Self, MessageError> {
        let length: u32 = from.take()?;
        Ok(from.take_bytes(length as usize)?.to_vec())
    }
}

impl<T: Field> Field for Option<T> {
    fn write(&self, to: &mut FieldWriter) {
        to.put(&self.is_some());
        if let Some(value) = self {
            to.put(value);
        }
    }

    fn read(from: &mut FieldReader<'_>) -> Result<Self, MessageError> {
        if from.take()? { from.take().map(Some) } else { Ok(None) }
    }
}

impl<A: Field, B: Field> Field for (A, B) {
    fn write(&self, to: &mut FieldWriter) {
        to.put(&self.0);
        to.put(&self.1);
    }

    fn read(from: &mut FieldReader<'_>) -> Result<Self, MessageError> {
        Ok((from.take()?, from.take()?))
    }
}

/// A list with its length before it. Each element takes at least a byte, so a payload bounds its length.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct List<T>(pub Vec<T>);

impl<T: Field> Field for List<T> {
    fn write(&self, to: &mut FieldWriter) {
        to.put(&(self.0.len() as u32));
        self.0.iter().for_each(|value| to.put(value));
    }

    fn read(from: &mut FieldReader<'_>) -> Result<Self, MessageError> {
        let length: u32 = from.take()?;
        (0..length).map(|_| from.take()).collect::<Result<_, _>>().map(Self)
    }
}
