//! The smallest proxies that a test can use: HTTP (absolute form and CONNECT) and SOCKS5. Each notes what it was asked.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

pub struct TestProxy {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    accepting: JoinHandle<()>,
}

impl Drop for TestProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl TestProxy {
    /// What was asked, in order: `CONNECT host:port`, `GET http://…`, `socks5 host:port user:password`.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// An HTTP proxy. `authorization`: the Proxy-Authorization that it insists on. Every name leads to loopback.
    pub async fn http(authorization: Option<&str>) -> Self {
        let authorization = authorization.map(str::to_owned);
        Self::start(move |stream, asked| {
            let authorization = authorization.clone();
            async move {
                let _ = http(stream, asked, authorization, None).await;
            }
        })
        .await
    }

    /// An HTTP proxy whose every CONNECT leads to `to`.
    pub async fn leading_to(to: SocketAddr) -> Self {
        Self::start(move |stream, asked| async move {
            let _ = http(stream, asked, None, Some(to)).await;
        })
        .await
    }

    /// A SOCKS5 proxy; with `user`, one that insists on user:password. Every name leads to loopback.
    pub async fn socks5(user: Option<&str>) -> Self {
        let user = user.map(str::to_owned);
        Self::start(move |stream, asked| {
            let user = user.clone();
            async move {
                let _ = socks5(stream, asked, user).await;
            }
        })
        .await
    }

    async fn start<F>(serve: impl Fn(TcpStream, Arc<Mutex<Vec<String>>>) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, log.clone()));
            }
        });
        Self { address, asked, accepting }
    }
}

async fn head(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

fn port(authority: &str) -> u16 {
    authority.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(80)
}

async fn http(
    mut stream: TcpStream,
    asked: Arc<Mutex<Vec<String>>>,
    authorization: Option<String>,
    to: Option<SocketAddr>,
) -> std::io::Result<()> {
    let mut upstream: Option<TcpStream> = None;
    loop {
        let head = head(&mut stream).await?;
        let line = head.lines().next().unwrap_or_default().to_owned();
        let mut words = line.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        asked.lock().unwrap().push(format!("{method} {target}"));
        let sent = head.lines().find_map(|l| {
            l.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case("proxy-authorization")).map(|(_, v)| v)
        });
        if authorization.is_some() && sent != authorization.as_deref() {
            stream.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n").await?;
            continue;
        }
        if method == "CONNECT" {
            let to = to.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], port(target))));
            let mut upstream = TcpStream::connect(to).await?;
            stream.write_all(b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n").await?;
            copy_bidirectional(&mut stream, &mut upstream).await?;
            return Ok(());
        }
        let rest = target.strip_prefix("http://").unwrap_or_default();
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let to = match &mut upstream {
            Some(to) => to,
            None => upstream.insert(TcpStream::connect(("127.0.0.1", port(authority))).await?),
        };
        // Requests without a body, answers with a Content-Length: enough for what tests ask through it.
        to.write_all(head.replacen(target, &format!("/{path}"), 1).as_bytes()).await?;
        let answer = self::head(to).await?;
        let length = answer.lines().find_map(|l| {
            l.split_once(": ")
                .filter(|(n, _)| n.eq_ignore_ascii_case("content-length"))
                .and_then(|(_, v)| v.parse().ok())
        });
        let mut body = vec![0; if method == "HEAD" { 0 } else { length.unwrap_or(0) }];
        to.read_exact(&mut body).await?;
        stream.write_all(answer.as_bytes()).await?;
        stream.write_all(&body).await?;
    }
}

async fn socks5(mut stream: TcpStream, asked: Arc<Mutex<Vec<String>>>, user: Option<String>) -> std::io::Result<()> {
    let mut hello = [0; 2];
    stream.read_exact(&mut hello).await?;
    let mut methods = vec![0; usize::from(hello[1])];
    stream.read_exact(&mut methods).await?;
    let mut who = "-".to_owned();
    match user {
        None => stream.write_all(&[5, 0]).await?,
        Some(_) if !methods.contains(&2) => return stream.write_all(&[5, 0xff]).await,
        Some(user) => {
            stream.write_all(&[5, 2]).await?;
            let mut texts = Vec::new();
            stream.read_u8().await?;
            for _ in 0..2 {
                let mut text = vec![0; usize::from(stream.read_u8().await?)];
                stream.read_exact(&mut text).await?;
                texts.push(String::from_utf8_lossy(&text).into_owned());
            }
            who = texts.join(":");
            let ok = who == user;
            stream.write_all(&[1, u8::from(!ok)]).await?;
            if !ok {
                return Ok(());
            }
        }
    }
    let mut request = [0; 4];
    stream.read_exact(&mut request).await?;
    let host = match request[3] {
        1 => {
            let mut address = [0; 4];
            stream.read_exact(&mut address).await?;
            std::net::Ipv4Addr::from(address).to_string()
        }
        _ => {
            let mut name = vec![0; usize::from(stream.read_u8().await?)];
            stream.read_exact(&mut name).await?;
            String::from_utf8_lossy(&name).into_owned()
        }
    };
    let port = stream.read_u16().await?;
    asked.lock().unwrap().push(format!("socks5 {host}:{port} {who}"));
    let mut upstream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
    copy_bidirectional(&mut stream, &mut upstream).await?;
    Ok(())
}
