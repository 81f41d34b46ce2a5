//! The gateway's buses: the embedded broker, and the client of another one.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lichen_gateway::broker::{Admit, Broker, Config, Limits, Seat};
use lichen_gateway::bus::{Arrival, Bus, EmbeddedBus};
use lichen_gateway::external::{self, ExternalBus};
use lichen_pki::Authority;

const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_bus_hears_nodes_and_joins_and_speaks_to_them() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open_or_create(dir.path()).unwrap();
    let credentials = authority.issue_server(&["localhost".to_owned()]).unwrap();
    let tls = Arc::new(lichen_pki::server_config(&credentials, authority.ca_pem(), &[]).unwrap());
    let seat = Seat::bind(([127, 0, 0, 1], 0).into()).unwrap();
    let config = Config { tls, limits: Limits::default(), admit: Admit::everyone() };
    let broker = Broker::start(&seat, config).unwrap();
    let mut bus = EmbeddedBus::new(broker.port()).unwrap();
    let mut node = broker.port();
    assert_eq!(bus.recv().await, Some(Arrival::Linked));
    node.subscribe("lichen/v1/n/edge-1/down").unwrap();

    node.publish("lichen/v1/n/edge-1/other", Bytes::from_static(b"not for the gateway")).unwrap();
    for topic in ["lichen/v1/n/edge-1/up", "lichen/v1/n/edge-1/presence", "lichen/v1/join/abcdef/up"] {
        node.publish(topic, Bytes::from_static(b"said")).unwrap();
        let heard = tokio::time::timeout(PATIENCE, bus.recv()).await.unwrap().unwrap();
        let Arrival::Message(heard) = heard else { panic!("{heard:?}") };
        assert_eq!((&*heard.topic, &heard.payload[..]), (topic, &b"said"[..]));
    }
    bus.publisher().publish("lichen/v1/n/edge-1/down", Bytes::from_static(b"answer")).unwrap();
    let heard = tokio::time::timeout(PATIENCE, node.recv()).await.unwrap().unwrap();
    assert_eq!(&heard.payload[..], b"answer");
    broker.shutdown().await;
    assert!(
        tokio::time::timeout(PATIENCE, bus.recv()).await.unwrap().is_none(),
        "the bus ends with its broker"
    );
}

#[tokio::test]
async fn another_broker_is_a_bus_and_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open_or_create(dir.path()).unwrap();
    let credentials = authority.issue_server(&["127.0.0.1".to_owned()]).unwrap();
    let tls = Arc::new(lichen_pki::server_config(&credentials, authority.ca_pem(), &[]).unwrap());
    let own = authority.issue_client(lichen_pki::GATEWAY_USER, None).unwrap();
    // The port stays the same and is refused while no broker runs there.
    let seat = Seat::bind(([127, 0, 0, 1], 0).into()).unwrap();
    let broker = || {
        let (tls, limits) = (tls.clone(), Limits::default());
        Broker::start(&seat, Config { tls, limits, admit: Admit::everyone() }).unwrap()
    };
    let mut there = broker();
    let address = there.local_addr();
    let access = lichen_mqtt::Access::new(address.to_string());
    let trust = lichen_pki::ClientTrust::Authority(authority.ca_pem().to_owned());
    let tls = access.tls(&trust, Some(&own)).unwrap();
    let config = external::Config { broker: access.address, tls, login: None };
    let mut bus = ExternalBus::spawn(config);
    let publisher = bus.publisher();
    let next =
        async |bus: &mut ExternalBus| tokio::time::timeout(PATIENCE, bus.recv()).await.unwrap().unwrap();
    assert!(publisher.publish("lichen/v1/n/a/down", Bytes::new()).is_err(), "not linked yet");
    for _ in 0..3 {
        assert_eq!(next(&mut bus).await, Arrival::Linked);
        let mut node = there.port();
        node.subscribe("lichen/v1/n/a/down").unwrap();
        node.publish("lichen/v1/n/a/up", Bytes::from_static(b"said")).unwrap();
        let Arrival::Message(heard) = next(&mut bus).await else { panic!() };
        assert_eq!((&*heard.topic, &heard.payload[..]), ("lichen/v1/n/a/up", &b"said"[..]));
        publisher.publish("lichen/v1/n/a/down", Bytes::from_static(b"answer")).unwrap();
        let heard = tokio::time::timeout(PATIENCE, node.recv()).await.unwrap().unwrap();
        assert_eq!(&heard.payload[..], b"answer");
        there.shutdown().await;
        assert_eq!(next(&mut bus).await, Arrival::Lost);
        assert!(publisher.publish("lichen/v1/n/a/down", Bytes::new()).is_err(), "there is no broker");
        assert!(tokio::net::TcpStream::connect(address).await.is_err(), "the port is ours, and refuses");
        there = broker();
    }
}

#[tokio::test]
async fn of_several_brokers_the_one_that_answers_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open_or_create(dir.path()).unwrap();
    let credentials = authority.issue_server(&["127.0.0.1".to_owned()]).unwrap();
    let tls = Arc::new(lichen_pki::server_config(&credentials, authority.ca_pem(), &[]).unwrap());
    let own = authority.issue_client(lichen_pki::GATEWAY_USER, None).unwrap();
    let seats = [(); 2].map(|()| Seat::bind(([127, 0, 0, 1], 0).into()).unwrap());
    let config = || Config { tls: tls.clone(), limits: Limits::default(), admit: Admit::everyone() };
    // One that takes connections and says nothing, as a machine that hangs does.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let [first, second] = seats.each_ref().map(Seat::local_addr);
    let access = lichen_mqtt::Access::new(format!("{first},{},{second}", silent.local_addr().unwrap()));
    let trust = lichen_pki::ClientTrust::Authority(authority.ca_pem().to_owned());
    let client = access.tls(&trust, Some(&own)).unwrap();
    let mut bus = ExternalBus::spawn(external::Config { broker: access.address, tls: client, login: None });
    for seat in [1, 0, 1] {
        let broker = Broker::start(&seats[seat], config()).unwrap();
        assert_eq!(tokio::time::timeout(PATIENCE, bus.recv()).await.unwrap(), Some(Arrival::Linked));
        broker.shutdown().await;
        assert_eq!(tokio::time::timeout(PATIENCE, bus.recv()).await.unwrap(), Some(Arrival::Lost));
    }
}
