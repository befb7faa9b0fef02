//! Where metrics are served.

use std::net::SocketAddr;

use crate::{
    diagnostic::Code,
    reader::{Reader, Value},
};

/// Stands for no address.
const OFF: &str = "off";

/// Metrics besides those on the socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Address and TCP port for metrics alone; `None` opens no port.
    pub listen: Option<SocketAddr>,
}

pub(super) fn read(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Metrics> {
    let object = reader.object(value, &["listen"])?;
    let Some(listen) = object.get("listen") else { return Some(Metrics::default()) };
    let text = reader.filled_text(&listen)?;
    if text == OFF {
        return Some(Metrics::default());
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Some(Metrics { listen: Some(address) }),
        _ => {
            let problem = format!("`{text}` is no address with a port");
            let found = reader.wrong(&listen.at_value(), Code::BadValue, problem);
            found.help = Some("write `[::]:9960`, `192.0.2.10:9960`, or `off`".to_owned());
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::settings::parse;

    #[test]
    fn an_address_has_a_port() {
        for (text, want) in [
            ("'[::]:9960'", Ok(Some("[::]:9960"))),
            ("192.0.2.10:80", Ok(Some("192.0.2.10:80"))),
            ("off", Ok(None)),
            ("192.0.2.10", Err("1:36 `metrics.listen`: `192.0.2.10` is no address with a port")),
            ("'[::]:0'", Err("1:36 `metrics.listen`: `[::]:0` is no address with a port")),
            ("node:9960", Err("1:36 `metrics.listen`: `node:9960` is no address with a port")),
            ("':9960'", Err("1:36 `metrics.listen`: `:9960` is no address with a port")),
            ("''", Err("1:36 `metrics.listen`: must not be empty")),
            ("9960", Err("1:36 `metrics.listen`: text is wanted here, this is a number")),
        ] {
            let got = parse("namegate.yaml", &format!("{{kubernetes: {{}}, metrics: {{listen: {text}}}}}"));
            let got = got.map(|settings| settings.metrics.listen.map(|address| address.to_string()));
            let got = got.map_err(|found| format!("{}:{} {}", found[0].line, found[0].column, found[0]));
            assert_eq!(got, want.map(|text| text.map(str::to_owned)).map_err(str::to_owned), "{text}");
        }
        let bare = parse("namegate.yaml", "{kubernetes: {}, metrics: {}}").unwrap();
        assert_eq!(bare.metrics.listen, None);
    }
}
