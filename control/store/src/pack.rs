//! Values as they lie in files: smaller, where that helps.
//!
//! An object says much that it says twice, and that others say as well: names of fields, above all. LZ4 finds that, with a
//! dictionary of what objects are made of, at a cost of a microsecond or two. It adds no check of its own: what is packed
//! is sealed, inside or outside. What is encrypted is not packed, for its length would tell something of what is in it.

use std::borrow::Cow;

use lz4_flex::block;

use crate::codec::{DecodeError, Reader, len32};

/// What a packed value begins with, as no other value does.
const PACKED_VERSION: u8 = 0xc1;
/// The version and the length of what is packed.
const HEAD_BYTES: usize = 5;
/// LZ4 makes no more than this of a byte.
const RATIO_MAX: usize = 255;

/// What objects are made of. It belongs to the format: another one needs another version.
const DICTIONARY: &[u8] = br#"/core/serviceaccounts//core/namespaces//core/services//core/secrets//discovery.k8s.io/endpointslices//apps/replicasets//apps/deployments//core/events//core/nodes//core/pods//core/configmaps/default/"lastTransitionTime":null,"message":"","reason":"","status":"False","type":"Progressing"},{"lastProbeTime":null,"lastTransitionTime":"2026-"status":"True","type":"PodScheduled"},"type":"ContainersReady"},"type":"Initialized"},"type":"Ready"}],"containerStatuses":[{"containerID":"","image":"","imageID":"","lastState":{},"name":"","ready":true,"restartCount":0,"started":true,"state":{"running":{"startedAt":"2026-"hostIP":"10.64.","phase":"Running","podIP":"10.64.","podIPs":[{"ip":"10.64."qosClass":"BestEffort","startTime":"2026-"f:status":{"f:conditions":{".":{},"k:{\"type\":\"Ready\"}":{".":{},"f:lastProbeTime":{},"f:lastTransitionTime":{},"f:message":{},"f:reason":{},"f:status":{},"f:type":{}},"f:spec":{"f:containers":{"k:{\"name\":\""f:image":{},"f:imagePullPolicy":{},"f:name":{},"f:ports":{"f:resources":{},"f:terminationMessagePath":{},"f:terminationMessagePolicy":{}"f:replicas":{},"f:selector":{},"f:template":{"f:metadata":{"f:annotations":{},"f:labels":{".":{},"f:app":{}}},"f:ownerReferences":{".":{},"k:{\"uid\":\""spec":{"containers":[{"image":"","imagePullPolicy":"IfNotPresent","name":"","ports":[{"containerPort":"protocol":"TCP"}],"resources":{"limits":{"cpu":"memory":"Mi"},"requests":{},"terminationMessagePath":"/dev/termination-log","terminationMessagePolicy":"File","volumeMounts":[{"mountPath":"dnsPolicy":"ClusterFirst","enableServiceLinks":true,"nodeName":"","preemptionPolicy":"PreemptLowerPriority","priority":0,"restartPolicy":"Always","schedulerName":"default-scheduler","securityContext":{},"serviceAccount":"default","serviceAccountName":"default","terminationGracePeriodSeconds":30,"tolerations":[{"effect":"NoExecute","key":"node.kubernetes.io/not-ready","operator":"Exists","key":"node.kubernetes.io/unreachable","volumes":[{"replicas":1,"selector":{"matchLabels":{"app":""template":{"metadata":{"annotations":{"kubernetes.io/"generateName":"","generation":1,"labels":{"app":"ownerReferences":[{"apiVersion":"apps/v1","blockOwnerDeletion":true,"controller":true,"kind":"ReplicaSet","name":"spec.nodeName status.phase metadata.namespace kube-system default metadata.name [{"apiVersion":"v1","fieldsType":"FieldsV1","fieldsV1":{"f:data":{".":{},"f:"},"manager":"lichen kubectl-client-side-apply kubectl-create","operation":"Apply","operation":"Update","subresource":"status","time":"2026-}]{"apiVersion":"v1","data":{""},"kind":"Deployment Secret Pod","kind":"ConfigMap","metadata":{"creationTimestamp":"2026-","name":"","namespace":"default","uid":""}}"#;

/// A value as it is written.
pub(crate) fn pack(value: Vec<u8>) -> Vec<u8> {
    let mut out = vec![0; HEAD_BYTES + block::get_maximum_output_size(value.len())];
    out[0] = PACKED_VERSION;
    out[1..HEAD_BYTES].copy_from_slice(&len32(value.len()).to_le_bytes());
    match block::compress_into_with_dict(&value, &mut out[HEAD_BYTES..], DICTIONARY) {
        Ok(len) if HEAD_BYTES + len < value.len() => {
            out.truncate(HEAD_BYTES + len);
            out
        }
        Ok(_) | Err(_) => value,
    }
}

/// The value that was written, whether it was packed or not; from bytes that may come from anywhere.
pub(crate) fn unpack(bytes: &[u8]) -> Result<Cow<'_, [u8]>, DecodeError> {
    if bytes.first() != Some(&PACKED_VERSION) {
        return Ok(Cow::Borrowed(bytes));
    }
    let malformed = DecodeError::Malformed("what is packed");
    let mut reader = Reader::new(&bytes[1..]);
    let len = reader.u32()? as usize;
    let packed = &bytes[HEAD_BYTES..];
    if len > packed.len().saturating_mul(RATIO_MAX) {
        return Err(malformed);
    }
    let mut out = vec![0; len];
    match block::decompress_into_with_dict(packed, &mut out, DICTIONARY) {
        Ok(found) if found == len => Ok(Cow::Owned(out)),
        Ok(_) | Err(_) => Err(malformed),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_object_takes_less_room() {
        let object = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"creationTimestamp":"2026-11-22T12:59:37Z","name":"a","namespace":"default","uid":"0cf3b436-ad99-47c2-bed3-2abb6f168023"}}"#;
        let packed = pack(object.into());
        assert!(packed.len() < object.len() / 2, "{}", packed.len());
        assert_eq!(unpack(&packed).unwrap(), object.as_bytes());
    }

    #[test]
    fn what_does_not_get_smaller_stays_as_it_is() {
        for value in ["", "x", "q7Zk!"] {
            assert_eq!(pack(value.into()), value.as_bytes());
            assert_eq!(unpack(value.as_bytes()).unwrap(), value.as_bytes());
        }
    }

    #[test]
    fn what_announces_more_than_it_can_be_is_refused() {
        let packed = pack(vec![0; 100_000]);
        for len in [0, 99_999, 100_001, u32::MAX] {
            let mut other = packed.clone();
            other[1..HEAD_BYTES].copy_from_slice(&len.to_le_bytes());
            assert!(unpack(&other).is_err(), "{len}");
        }
        for len in 1..packed.len() {
            assert!(unpack(&packed[..len]).is_err(), "cut at {len}");
        }
    }

    proptest! {
        #[test]
        fn every_value_comes_back(value in prop::collection::vec(0u8..0xc0, 0..2000)) {
            let packed = pack(value.clone());
            prop_assert!(packed.len() <= value.len());
            let unpacked = unpack(&packed).unwrap();
            prop_assert_eq!(&*unpacked, &*value);
        }

        #[test]
        fn no_bytes_are_too_strange(rest in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = unpack(&[&[PACKED_VERSION], &*rest].concat());
        }
    }
}
