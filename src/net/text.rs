//! Addresses as text on the stack, for logs and presence.
//!
//! [`AddressText`] derefs to `str`, so it needs no allocation where a `&str` or a `Display` is
//! wanted. The tests compare it with the standard library's text.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Deref;

/// Text of an address, equal to its `Display`. IPv4 is formatted by hand: the address of each new
/// client is formatted twice, and `Display` took a twentieth of all instructions of a new
/// connection.
#[derive(Clone, Copy)]
pub struct AddressText {
    text: [u8; BYTES_MAX],
    len: usize,
}

/// 64: an IPv6 address with scope and port has at most 58 bytes.
const BYTES_MAX: usize = 64;

impl From<IpAddr> for AddressText {
    fn from(address: IpAddr) -> Self {
        let mut text = Self {
            text: [0; BYTES_MAX],
            len: 0,
        };
        match address {
            IpAddr::V4(address) => text.put_ipv4(address),
            IpAddr::V6(address) => text.put(format_args!("{address}")),
        }
        text
    }
}

impl From<SocketAddr> for AddressText {
    fn from(address: SocketAddr) -> Self {
        let mut text = Self {
            text: [0; BYTES_MAX],
            len: 0,
        };
        match address {
            SocketAddr::V4(address) => {
                text.put_ipv4(*address.ip());
                text.put_byte(b':');
                text.put_number(address.port());
            }
            SocketAddr::V6(address) => text.put(format_args!("{address}")),
        }
        text
    }
}

impl Deref for AddressText {
    type Target = str;

    fn deref(&self) -> &str {
        // Only ASCII was written.
        std::str::from_utf8(&self.text[..self.len]).unwrap_or_default()
    }
}

impl fmt::Display for AddressText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl AddressText {
    fn put_ipv4(&mut self, address: Ipv4Addr) {
        for (place, part) in address.octets().into_iter().enumerate() {
            if place > 0 {
                self.put_byte(b'.');
            }
            self.put_number(part.into());
        }
    }

    fn put_number(&mut self, number: u16) {
        for divisor in [10_000, 1_000, 100, 10] {
            if number >= divisor {
                self.put_byte(b'0' + (number / divisor % 10) as u8);
            }
        }
        self.put_byte(b'0' + (number % 10) as u8);
    }

    fn put(&mut self, text: fmt::Arguments<'_>) {
        let written = self.write_fmt(text);
        debug_assert!(written.is_ok(), "every address fits into the buffer");
    }

    fn put_byte(&mut self, byte: u8) {
        self.text[self.len] = byte;
        self.len += 1;
    }
}

impl fmt::Write for AddressText {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        self.text
            .get_mut(self.len..end)
            .ok_or(fmt::Error)?
            .copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn text_equals_display(ip in any::<IpAddr>(), port in any::<u16>()) {
            prop_assert_eq!(&*AddressText::from(ip), ip.to_string());
            let socket = SocketAddr::new(ip, port);
            prop_assert_eq!(&*AddressText::from(socket), socket.to_string());
        }
    }

    #[test]
    fn shortest_and_longest_address_fit() {
        let widest = std::net::SocketAddrV6::new([0xffff; 8].into(), u16::MAX, 0, u32::MAX);
        for text in ["0.0.0.0:0", "255.255.255.255:65535", &widest.to_string()] {
            assert_eq!(
                &*AddressText::from(text.parse::<SocketAddr>().unwrap()),
                text
            );
        }
    }
}
