/// Whose answer a response is. Given as an extension of the request ([`RequestOptions::identity`](crate::RequestOptions::identity))
/// or by [`Builder::identity`](crate::Builder::identity); responses to different identities never meet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity(pub String);
