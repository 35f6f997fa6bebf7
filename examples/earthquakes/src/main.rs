//! earthquakes: makes a short alert of each event of the USGS feed that is strong enough.
//!
//! Input: GeoJSON features, one a record. Output: events of at least `MIN_MAGNITUDE` as small JSON objects, keyed
//! by region; those of at least `LARGE_MAGNITUDE` also go to the second output topic. A record that is no such
//! feature is an error, and the deployment's error policy decides what becomes of it.

use std::error::Error;

use redpanda_transform_sdk::{BorrowedRecord, RecordWriter, WriteEvent, WriteOptions, on_record_written};
use serde::{Deserialize, Serialize};
use serde_json::Number;

#[derive(Deserialize)]
struct Feature<'a> {
    id: &'a str,
    properties: Properties,
    geometry: Geometry,
}

#[derive(Deserialize)]
struct Properties {
    mag: Option<Number>,
    place: Option<String>,
    time: i64,
    #[serde(default)]
    tsunami: u8,
}

/// Longitude and latitude in degrees, depth in kilometers.
#[derive(Deserialize)]
struct Geometry {
    coordinates: [Number; 3],
}

#[derive(Serialize)]
struct Alert<'a> {
    id: &'a str,
    magnitude: &'a Number,
    place: &'a str,
    time: i64,
    longitude: &'a Number,
    latitude: &'a Number,
    depth_km: &'a Number,
    tsunami: bool,
}

fn main() {
    let number = |name: &str, otherwise: f64| match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")),
        Err(_) => otherwise,
    };
    let least = number("MIN_MAGNITUDE", 3.0);
    let large = number("LARGE_MAGNITUDE", f64::INFINITY);
    let large_topic = std::env::var("REDPANDA_OUTPUT_TOPIC_1").ok();
    on_record_written(|event: WriteEvent, writer: &mut RecordWriter| {
        on_quake(event, writer, least, large, large_topic.as_deref())
    })
}

fn on_quake(
    event: WriteEvent,
    writer: &mut RecordWriter,
    least: f64,
    large: f64,
    large_topic: Option<&str>,
) -> Result<(), Box<dyn Error>> {
    let feature: Feature = serde_json::from_slice(event.record.value().unwrap_or_default())?;
    let Some(magnitude) = &feature.properties.mag else { return Ok(()) };
    let strength = magnitude.as_f64().unwrap_or_default();
    if strength < least {
        return Ok(());
    }
    let place = feature.properties.place.as_deref().unwrap_or_default();
    let [longitude, latitude, depth_km] = &feature.geometry.coordinates;
    let alert = serde_json::to_vec(&Alert {
        id: feature.id,
        magnitude,
        place,
        time: feature.properties.time,
        longitude,
        latitude,
        depth_km,
        tsunami: feature.properties.tsunami != 0,
    })?;
    let record = BorrowedRecord::new(Some(region(place).as_bytes()), Some(&alert));
    writer.write(record.clone())?;
    if let (true, Some(topic)) = (strength >= large, large_topic) {
        println!("large: magnitude {magnitude}, {place}");
        writer.write_with_options(record, WriteOptions::to_topic(topic))?;
    }
    Ok(())
}

/// The last part of a place: `4km W of Castaic, CA` is in `CA`.
fn region(place: &str) -> &str {
    place.rsplit(", ").next().unwrap_or(place)
}
