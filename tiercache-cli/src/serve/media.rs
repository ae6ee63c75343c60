/// The media type the ending of a key's name stands for.
pub(crate) fn media_type_of(key: &[u8]) -> Option<&'static str> {
    mime_guess::from_path(std::str::from_utf8(key).ok()?).first_raw()
}
